"""ONNX Runtime, on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RuntimeFailure, RuntimeMissing
from ..manifest import Method
from .base import Session

# The graph's file name in an artefact that is a folder.
MODEL = "model.onnx"


def model_of(method: str) -> str:
    """The graph's file name of a further shape, beside the first one's."""
    return f"{method}.onnx"


_INSTALL = "onnxruntime is not installed. Install it with: pip install 'handheld[onnx]'"


class OnnxRuntimeSession(Session):
    """Runs a `.onnx` file, or a folder of one and its weights; further shapes are further files over these weights.

    Each shape but the first is loaded when it is first run. It then holds weights of its own, as laid out for it.
    `threads` is the intra-op pool; None takes every CPU this process may use.
    """

    runtime = "onnxruntime"

    @classmethod
    def unavailable(cls) -> str | None:
        return None if importlib.util.find_spec("onnxruntime") else _INSTALL

    @classmethod
    def library_version(cls) -> str:
        return _import().__version__

    def _load(self) -> None:
        _import()
        if self.threads is None:
            # Left to itself the runtime pins threads to CPUs, and complains where a container forbids it.
            self.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._model = {self.artifact.methods[0].name: self._opened(self._file())}

    def _opened(self, file: Path) -> Any:
        """The runtime's session over one graph."""
        ort = _import()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Memory before the last few percent of speed: the plan for one block of all activations is made in a first
        # run that holds another, and buffers kept for later tensors of the same size are held from first to last.
        options.enable_mem_pattern = False
        options.enable_mem_reuse = False
        # Idle pool threads must not burn the CPU of whoever runs between two of our runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.artifact.stream is not None:
            # One of several that take turns: what one needs in its call serves the next one, and none spins.
            _share_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            with _large_blocks_go_back(always=self.artifact.stream is not None):
                model = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no base class of their own
            raise self._refused("load", error) from error
        given = ([i.name for i in model.get_inputs()], [o.name for o in model.get_outputs()])
        wanted = ([spec.name for spec in self.inputs], [spec.name for spec in self.outputs])
        if [sorted(names) for names in given] != [sorted(names) for names in wanted]:
            raise RuntimeFailure(
                f"{self.path.name} has inputs and outputs {given}, the manifest says {wanted}. Export it again."
            )
        return model

    def _file(self) -> Path:
        """The first shape's model: in a folder, where its weights have files of their own."""
        return self.path / MODEL if self.path.is_dir() else self.path

    def _run(self, method: Method, arrays: list[np.ndarray]) -> list[np.ndarray]:
        if self.artifact.dynamic:  # one graph for all sizes
            method = self.artifact.methods[0]
        if method.name not in self._model:
            self._model[method.name] = self._opened(self.path / model_of(method.name))
        feed = {spec.name: array for spec, array in zip(self.inputs, arrays)}
        try:
            return self._model[method.name].run([spec.name for spec in self.outputs], feed)
        except Exception as error:
            raise self._refused("run", error) from error

    def call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        if self._model is None:
            return super().call(inputs, outputs)
        ort = _import()
        model = self._model[self.artifact.methods[0].name]
        binding = model.io_binding()
        # Neither side is copied: the runtime reads and writes the arrays themselves.
        for spec, array in zip(self.inputs, inputs):
            binding.bind_ortvalue_input(spec.name, ort.OrtValue.ortvalue_from_numpy(array))
        for spec, array in zip(self.outputs, outputs):
            binding.bind_ortvalue_output(spec.name, ort.OrtValue.ortvalue_from_numpy(array))
        try:
            model.run_with_iobinding(binding)
        except Exception as error:
            raise self._refused("run", error) from error
        return outputs


@functools.cache
def _share_arena() -> None:
    """Make the arena that streams' sessions share: one for each held a quarter more, none at all was slower."""
    ort = _import()
    cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(cpu, None)


_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE_BYTES = 1 << 18
_MOST_BYTES = 1 << 25  # up to which glibc moves the threshold by itself, and has after a load of large weights


@contextlib.contextmanager
def _large_blocks_go_back(always: bool) -> Iterator[None]:
    """While weights are laid out anew, give back those that are done with. Elsewhere than with glibc, nothing.

    glibc keeps freed blocks in its heap, and the new ones do not fit the holes: loading a model of 221 MB of
    weights peaked at 306 to 343 MB, and at 260 so. What is left is trimmed.

    always: from now on, too. The programs of a stream come and go, and hand on arrays of many sizes: one of
    704x1280 peaked at 1241 MB, and at 859 so, as fast. Without an arena it would take twice the time.
    """
    _set_mmap_threshold(_LARGE_BYTES)
    try:
        yield
    finally:
        if not always:
            _set_mmap_threshold(_MOST_BYTES)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _set_mmap_threshold(size_bytes: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size_bytes)


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing(f"{_INSTALL} ({error})") from error
    return onnxruntime
