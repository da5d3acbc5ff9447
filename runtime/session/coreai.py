"""Core AI through its Python package, which executes an asset on the CPU, on Linux too."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RuntimeFailure, RuntimeMissing
from ..manifest import Method
from ..process import Child
from .base import Session

_INSTALL = "coreai-core is not installed. Install it with: pip install 'handheld[coreai]'"
_NO_WHEEL = (
    "Core AI has packages for Linux on x86-64 (glibc 2.34 or newer) and for macOS on arm64; this is {} on {}. "
    "Take the bundle there"
)
_WHEELS = (("Linux", "x86_64"), ("Darwin", "arm64"))

_NOISE = re.compile(r"ODIE \[default\]: Loading function")


class CoreAISession(Session):
    """Runs the functions of an `.aimodel` folder in a process of the session's own, each loaded when first run.

    In a process of its own because a damaged asset kills the one that loads it, and because an interpreter that has
    run Core AI may abort when it ends (`coreai_host`). Arrays travel as files. On Linux it is an interpreter of one
    thread, on the CPU: what it computes counts, its speed says nothing of a device.
    """

    runtime = "coreai"

    @classmethod
    def unavailable(cls) -> str | None:
        if importlib.util.find_spec("coreai"):
            return None
        here = platform.system(), platform.machine()
        return _INSTALL if here in _WHEELS else _NO_WHEEL.format(*here)

    @classmethod
    def library_version(cls) -> str:
        if reason := cls.unavailable():
            raise RuntimeMissing(reason)
        version = importlib.metadata.version("coreai-core")
        if platform.system() == "Darwin":
            return version
        return f"{version} (Core AI, CPU path: neither the Neural Engine nor the GPU)"

    @classmethod
    def untimed(cls) -> str | None:
        if platform.system() == "Darwin":
            return None
        return (
            "away from Apple's systems Core AI is an interpreter of one thread, 10 to 100 times slower than other "
            "runtimes on the same CPU, and none of what a device runs: its times say nothing. Measure with the app"
        )

    def _load(self) -> None:
        if reason := self.unavailable():
            raise RuntimeMissing(reason)
        self.threads = None
        self._folder = tempfile.TemporaryDirectory(prefix="handheld-")
        self._model = Child(f"{__package__}.coreai_host", _NOISE)
        try:
            self._ask(
                "load",
                path=str(self.path.absolute()),
                functions=self._names(),
                inputs=[spec.name for spec in self.inputs],
                outputs=[spec.name for spec in self.outputs],
            )
        except BaseException:
            self.close()
            raise

    def _names(self) -> list[str]:
        """The functions that the manifest says there are: in a streamed segment, only the first of its methods."""
        methods = self.artifact.methods if self.artifact.stream is None else self.artifact.methods[:1]
        return [method.name for method in methods]

    def _run(self, method: Method, arrays: list[np.ndarray]) -> list[np.ndarray]:
        folder = Path(self._folder.name)
        inputs = {spec.name: str(folder / f"in_{i}.npy") for i, spec in enumerate(self.inputs)}
        outputs = {spec.name: str(folder / f"out_{i}.npy") for i, spec in enumerate(self.outputs)}
        for file, array in zip(inputs.values(), arrays):
            np.save(file, array, allow_pickle=False)
        self._ask("run", function=method.name, inputs=inputs, outputs=outputs)
        return [np.load(file, allow_pickle=False) for file in outputs.values()]

    def _ask(self, op: str, **arguments: Any) -> None:
        try:
            self._model.ask(op, **arguments)
        except RuntimeFailure as error:
            raise self._refused(op, error) from error

    def close(self) -> None:
        """End the process; a closed session cannot run."""
        if self._model is not None:
            self._model.close()
            self._folder.cleanup()
        super().close()
