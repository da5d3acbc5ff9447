"""Which neurons each token of a text needed: recorded once, replayed under other devices and policies.

A safetensors file: `counts` U32 [tokens, layers], `positions` U16 or U32, layer after layer, ascending within one;
the shape is JSON in the header's metadata.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ...errors import RuntimeFailure
from ...files import write_atomically

_FORMAT = "handheld.flash.trace.1"


@dataclass(frozen=True)
class TraceShape:
    """The pack that a trace is of.

    fixed_bytes: what a session of it holds beside table rows. always_bytes: of weights that every token computes
    with and that stay in memory (attention, head). parts: matrices that a bundle joins.
    """

    layers: int
    d_ff: int
    bundle_bytes: int
    bundles_per_group: int
    group_bytes: int
    parts: int = 3
    fixed_bytes: int = 0
    always_bytes: int = 0

    def offset(self, positions: np.ndarray) -> np.ndarray:
        """Where bundles start, in bytes from the layer's start."""
        groups, places = np.divmod(positions.astype(np.int64), self.bundles_per_group)
        return groups * self.group_bytes + places * self.bundle_bytes


@dataclass(frozen=True)
class Trace:
    """counts (tokens, layers) and the flat positions; `token(t)[layer]` are one layer's."""

    shape: TraceShape
    counts: np.ndarray
    positions: np.ndarray

    @property
    def tokens(self) -> int:
        return len(self.counts)

    def token(self, index: int) -> list[np.ndarray]:
        """By layer, the ascending positions that the token needed."""
        ends = np.cumsum(self.counts[index], dtype=np.int64) + int(self.counts[:index].sum(dtype=np.int64))
        starts = ends - self.counts[index]
        return [self.positions[start:end] for start, end in zip(starts, ends, strict=True)]

    def write(self, path: Path) -> None:
        """Write the file that `read_trace` reads, atomically."""
        from safetensors.numpy import save

        narrow = np.uint16 if self.shape.d_ff <= 1 << 16 else np.uint32
        tensors = {"counts": self.counts.astype(np.uint32), "positions": self.positions.astype(narrow)}
        write_atomically(path, save(tensors, {"format": _FORMAT, "shape": json.dumps(asdict(self.shape))}))


def read_trace(path: str | Path) -> Trace:
    """Read a trace. Raises RuntimeFailure for a file that is none, or whose figures do not agree."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its format is {metadata.get('format')}, not {_FORMAT}")
            shape = TraceShape(**json.loads(metadata["shape"]))
            trace = Trace(shape, file.get_tensor("counts"), file.get_tensor("positions"))
        _check(trace)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise RuntimeFailure(f"{path} is not a trace: {error}. Record it again.") from error
    return trace


def _check(trace: Trace) -> None:
    shape = trace.shape
    if min(shape.layers, shape.d_ff, shape.bundle_bytes, shape.bundles_per_group, shape.group_bytes) < 1:
        raise ValueError("its shape has a figure below one")
    if trace.counts.ndim != 2 or trace.counts.shape[1] != shape.layers:
        raise ValueError(f"its counts are {trace.counts.shape}, for {shape.layers} layers")
    if trace.counts.sum(dtype=np.uint64) != len(trace.positions):
        raise ValueError("its counts do not add up to its positions")
    if len(trace.positions) and trace.positions.max() >= shape.d_ff:
        raise ValueError(f"it has a position over the {shape.d_ff} neurons of a layer")


class Residency(Protocol):
    """A session or model: what it holds of a layer, as ids of the checkpoint."""

    def resident(self, layer: int) -> np.ndarray: ...


class TraceRecorder:
    """Records a session whose window is one token and whose budget holds whole layers: after each token, what is
    resident is what that token needed, in selected and in exact mode alike.

        recorder = TraceRecorder(shape, orders)
        for token in text:
            ...  # every layer of the session, once
            recorder.end_token(session)
        recorder.trace().write(path)

    orders: by layer, the id at each position (None: the same), as the pack has it.
    """

    def __init__(self, shape: TraceShape, orders: list[np.ndarray | None]) -> None:
        if len(orders) != shape.layers:
            raise RuntimeFailure(f"There are orders of {len(orders)} layers for a pack of {shape.layers}.")
        self._shape = shape
        self._positions = [None if order is None else np.argsort(order) for order in orders]
        self._counts: list[list[int]] = []
        self._flat: list[np.ndarray] = []

    def end_token(self, session: Residency) -> None:
        counts = []
        for layer, positions in enumerate(self._positions):
            ids = session.resident(layer)
            found = np.sort(ids if positions is None else positions[ids]).astype(np.uint32)
            counts.append(len(found))
            self._flat.append(found)
        self._counts.append(counts)

    def trace(self) -> Trace:
        counts = np.array(self._counts, np.uint32).reshape(-1, self._shape.layers)
        return Trace(self._shape, counts, np.concatenate([np.empty(0, np.uint32), *self._flat]))
