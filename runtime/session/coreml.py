"""Core ML through coremltools, on a Mac."""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

import numpy as np

from ..errors import RuntimeMissing
from ..manifest import Method
from .base import Session

_INSTALL = "coremltools is not installed. Install it with: pip install 'handheld[ios]'"


class CoreMLSession(Session):
    """Runs `.mlpackage` folders on the compute units that Core ML chooses; it does not say how many threads."""

    runtime = "coreml"

    @classmethod
    def unavailable(cls) -> str | None:
        if platform.system() != "Darwin":
            return f"Core ML runs on macOS only; this is {platform.system()}. Take the bundle to a Mac"
        return None if importlib.util.find_spec("coremltools") else _INSTALL

    @classmethod
    def library_version(cls) -> str:
        return _import().__version__

    def _load(self) -> None:
        self.threads = None
        first = self.artifact.methods[0]
        self._model = {first.name: self._function(first)}

    def _function(self, method: Method) -> Any:
        """One function of the package, compiled; a package of one is not asked for it by name."""
        coremltools = _import()
        named = {"function_name": method.name} if len(self.artifact.methods) > 1 else {}
        try:
            return coremltools.models.MLModel(str(self.path), **named)
        except Exception as error:  # whatever the compiler of the system raises
            raise self._refused("load", error) from error

    def _run(self, method: Method, arrays: list[np.ndarray]) -> list[np.ndarray]:
        if method.name not in self._model:
            self._model[method.name] = self._function(method)
        try:
            results = self._model[method.name].predict(
                {spec.name: array for spec, array in zip(self.inputs, arrays)}
            )
            return [results[spec.name] for spec in self.outputs]
        except Exception as error:
            raise self._refused("run", error) from error


def _import() -> Any:
    if reason := CoreMLSession.unavailable():
        raise RuntimeMissing(reason)
    import coremltools

    return coremltools
