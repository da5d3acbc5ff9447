"""ExecuTorch's Python bindings, on the CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import RuntimeFailure, RuntimeMissing
from ..manifest import Method
from .base import Session
from .native_stderr import held_back

_INSTALL = "executorch is not installed. Install it with: pip install 'handheld[android]'"

# Written on the first load, whatever the model: probing an ARM board's files on any Linux, and the pool's size.
_NOISE = re.compile(r"\[cpuinfo_utils\.cpp:\d+\]|\[threadpool\.cpp:\d+\] Resetting threadpool")


class ExecuTorchSession(Session):
    """Runs the methods of `.pte` files; inputs and outputs go by position, in the manifest's order.

    The first method is loaded with the file, each other when it is first run: a loaded method holds its memory.
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
        except RuntimeError as error:
            raise self._not_loaded(error, log.text) from error
        self._model = (program, {})  # a method lives no longer than its program
        self._method(self.artifact.methods[0])

    def _method(self, wanted: Method) -> Any:
        """A method of the program, loaded where it is not yet."""
        program, methods = self._model
        if wanted.name in methods:
            return methods[wanted.name]
        try:
            with held_back(_NOISE) as log:
                method = program.load_method(wanted.name)
        except RuntimeError as error:
            raise self._not_loaded(error, log.text) from error
        meta = method.method_meta()
        given = (meta.num_inputs(), meta.num_outputs())
        if given != (len(self.inputs), len(self.outputs)):
            raise RuntimeFailure(
                f"{self.path.name} has {given[0]} inputs and {given[1]} outputs, the manifest says "
                f"{len(self.inputs)} and {len(self.outputs)}. Export it again."
            )
        methods[wanted.name] = method
        return method

    def _not_loaded(self, error: Exception, log: str) -> RuntimeFailure:
        backends = ", ".join(_import()._get_registered_backend_names())
        return self._refused("load", error, f"{log}(backends in this build: {backends})")

    def _run(self, method: Method, arrays: list[np.ndarray]) -> list[np.ndarray]:
        loaded = self._method(method)
        try:
            results = loaded([self._torch.from_numpy(array) for array in arrays])
        except RuntimeError as error:
            raise self._refused("run", error) from error
        return [result.numpy() for result in results]

    def call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        if self._model is None:
            return super().call(inputs, outputs)
        method = self._method(self.artifact.methods[0])
        try:
            # Not cloned: a program has memory of its own for them, which its next call writes again.
            results = method([self._torch.from_numpy(array) for array in inputs], clone_outputs=False)
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
