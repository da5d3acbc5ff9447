"""Writing ONNX models that share their weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from handheld.runtime.session.ort import MODEL

WEIGHTS = f"{MODEL}.data"

# Shapes and the like stay in the graph: onnxruntime reads them there while it loads it.
_INLINE_BYTES = 4096

# Where tensors begin in the file: what a vector register wants, and for large ones what a page does on any system.
_ALIGNMENT = 64
_LARGE_BYTES, _LARGE_ALIGNMENT = 1 << 20, 1 << 16


def save_models(models: Mapping[str, Any], folder: Path) -> None:
    """Write models of `onnx_ir` by file name, with all of their weights in one file, equal ones once.

    Weights in a file of their own are mapped by onnxruntime, not read into the heap, before it lays them out anew.
    """
    import onnx_ir

    places: dict[bytes, int] = {}
    with open(folder / WEIGHTS, "wb") as file:
        for model in models.values():
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor.nbytes <= _INLINE_BYTES:
                    continue
                data = tensor.tobytes()
                key = hashlib.sha256(data).digest()
                if key not in places:
                    places[key] = _append(file, data)
                value.const_value = onnx_ir.ExternalTensor(
                    *(WEIGHTS, places[key], len(data), tensor.dtype),
                    shape=tensor.shape,
                    name=tensor.name,
                    base_dir=folder,
                )
        file.flush()
        os.fsync(file.fileno())
    if not places:
        (folder / WEIGHTS).unlink()
    for name, model in models.items():
        onnx_ir.save(model, folder / name)


def _append(file: BinaryIO, data: bytes) -> int:
    """Write a tensor's bytes behind the others; gives where they begin."""
    alignment = _LARGE_ALIGNMENT if len(data) >= _LARGE_BYTES else _ALIGNMENT
    file.write(bytes(-file.tell() % alignment))
    start = file.tell()
    file.write(data)
    return start
