"""ExecuTorch's Python bindings, on the CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from typing import Any

import numpy as np

from ..errors import RuntimeFailure, RuntimeMissing
from .base import Session
from .native_stderr import held_back

_INSTALL = "executorch is not installed. Install it with: pip install 'handheld[android]'"

# Written on the first load, whatever the model: probing an ARM board's files on any Linux, and the pool's size.
_NOISE = re.compile(r"\[cpuinfo_utils\.cpp:\d+\]|\[threadpool\.cpp:\d+\] Resetting threadpool")


class ExecuTorchSession(Session):
    """Runs the method `forward` of `.pte` files; inputs and outputs go by position, in the manifest's order.

    `threads` sizes the process-wide thread pool that all sessions of this runtime share.
    """

    runtime = "executorch"

    @classmethod
    def unavailable(cls) -> str | None:
        return None if importlib.util.find_spec("executorch") else _INSTALL

    @classmethod
    def library_version(cls) -> str:
        _import()
        return importlib.metadata.version("executorch")

    def _load(self) -> None:
        import torch

        library = _import()
        self._torch = torch
        try:
            with held_back(_NOISE) as log:
                if self.threads is not None:
                    library._unsafe_reset_threadpool(self.threads)
                self.threads = library._threadpool_get_thread_count()
                program = library._load_program(str(self.path))
                method = program.load_method("forward")
        except RuntimeError as error:
            backends = ", ".join(library._get_registered_backend_names())
            wrote = f"{log.text}(backends in this build: {backends})"
            raise self._refused("load", error, wrote) from error
        self._model = (program, method)  # the method lives no longer than its program
        meta = method.method_meta()
        given = (meta.num_inputs(), meta.num_outputs())
        if given != (len(self.inputs), len(self.outputs)):
            raise RuntimeFailure(
                f"{self.path.name} has {given[0]} inputs and {given[1]} outputs, the manifest says "
                f"{len(self.inputs)} and {len(self.outputs)}. Export it again."
            )

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        try:
            results = self._model[1]([self._torch.from_numpy(array) for array in arrays])
        except RuntimeError as error:
            raise self._refused("run", error) from error
        return [result.numpy() for result in results]


def _import() -> Any:
    """The bindings themselves: their public wrapper also imports the exporter, which takes seconds and memory."""
    try:
        import torch  # noqa: F401  loads the libraries that the bindings are linked to

        try:
            from executorch.extension.pybindings import _C as bindings
        except ImportError:  # earlier releases give the extension another name
            from executorch.extension.pybindings import portable_lib as bindings
    except ImportError as error:
        raise RuntimeMissing(f"{_INSTALL} ({error})") from error
    return bindings
