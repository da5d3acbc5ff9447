"""Core ML through coremltools, on a Mac."""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

import numpy as np

from ..errors import RuntimeMissing
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
        coremltools = _import()
        self.threads = None
        try:
            self._model = coremltools.models.MLModel(str(self.path))
        except Exception as error:  # whatever the compiler of the system raises
            raise self._refused("load", error) from error

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        try:
            results = self._model.predict({spec.name: array for spec, array in zip(self.inputs, arrays)})
            return [results[spec.name] for spec in self.outputs]
        except Exception as error:
            raise self._refused("run", error) from error


def _import() -> Any:
    if reason := CoreMLSession.unavailable():
        raise RuntimeMissing(reason)
    import coremltools

    return coremltools
