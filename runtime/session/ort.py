"""ONNX Runtime, on the CPU."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np

from ..errors import RuntimeFailure, RuntimeMissing
from .base import Session

_INSTALL = "onnxruntime is not installed. Install it with: pip install 'handheld[onnx]'"


class OnnxRuntimeSession(Session):
    """Runs `.onnx` files. `threads` is the intra-op pool; None takes every CPU this process may use."""

    runtime = "onnxruntime"

    @classmethod
    def unavailable(cls) -> str | None:
        return None if importlib.util.find_spec("onnxruntime") else _INSTALL

    @classmethod
    def library_version(cls) -> str:
        return _import().__version__

    def _load(self) -> None:
        ort = _import()
        if self.threads is None:
            # Left to itself the runtime pins threads to CPUs, and complains where a container forbids it.
            self.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle pool threads must not burn the CPU of whoever runs between two of our runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._model = ort.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no base class of their own
            raise self._refused("load", error) from error
        given = ([i.name for i in self._model.get_inputs()], [o.name for o in self._model.get_outputs()])
        wanted = ([spec.name for spec in self.inputs], [spec.name for spec in self.outputs])
        if [sorted(names) for names in given] != [sorted(names) for names in wanted]:
            raise RuntimeFailure(
                f"{self.path.name} has inputs and outputs {given}, the manifest says {wanted}. Export it again."
            )

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        feed = {spec.name: array for spec, array in zip(self.inputs, arrays)}
        try:
            return self._model.run([spec.name for spec in self.outputs], feed)
        except Exception as error:
            raise self._refused("run", error) from error


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing(f"{_INSTALL} ({error})") from error
    return onnxruntime
