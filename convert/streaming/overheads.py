"""What a runtime takes beside weights, buffers and activations: measured constants, one row per runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ExportError

if TYPE_CHECKING:
    from .memory import ProgramSize

_MB = 1_000_000


@dataclass(frozen=True)
class Overhead:
    """How much memory a runtime's process takes, as a function of what its programs need.

    Attributes:
        process_bytes: resident with Python, numpy and the runtime, before a program is loaded.
        program_bytes: of each loaded program, beside its weights.
        weights: resident bytes per byte of weights.
        boundary: copies of a program's inputs and outputs inside the runtime, for as long as it is loaded.
        inner: resident bytes per byte of activations inside a program.
        inner_stays: whether each program keeps that memory while it is loaded, or gives it back after a call.
        source: how and where this was measured.
    """

    process_bytes: int
    program_bytes: int
    weights: float
    boundary: float
    inner: float
    inner_stays: bool
    source: str

    def peak_bytes(self, held: Sequence[tuple[ProgramSize, int, int]]) -> int:
        """Of a pass.

        Args:
            held: of each segment its program, the bytes of x and y, and those of its states.
        """
        inner = [size.inner_bytes for size, _, _ in held]
        states = [state for _, _, state in held]
        return int(
            self.process_bytes
            + len(held) * self.program_bytes
            + sum(self.weights * size.weight_bytes + ends for size, ends, _ in held)
            + sum(states)
            + max(states)  # the driver has new states written beside the old ones, of one segment at a time
            + self.boundary * sum(ends + 2 * state for _, ends, state in held)
            + self.inner * (sum(inner) if self.inner_stays else max(inner))
        )

    def whole_clip_bytes(self, weights: int, activations: int) -> int:
        """Of one program on a whole clip.

        Args:
            activations: most at once, inputs and outputs with them.
        """
        return int(self.process_bytes + self.program_bytes + self.weights * weights + self.inner * activations)


OVERHEADS: dict[str, Overhead] = {
    "onnxruntime": Overhead(
        process_bytes=70 * _MB,
        program_bytes=1 * _MB,
        weights=1.0,
        boundary=0.0,
        # An arena that grows by doubling, and keeps what it has for all programs.
        inner=2.5,
        inner_stays=False,
        source="measured with onnxruntime on x86-64 Linux, 2 threads, ltx fp32: streamed at 256x256 (one plan) "
        "and 704x1280 (two), whole clip of 25 frames of 256x256; later plans at 704x1280 took 5 to 10 % more",
    ),
    "executorch": Overhead(
        process_bytes=373 * _MB,  # its Python bindings import torch
        program_bytes=0,
        weights=1.0,
        boundary=0.0,
        inner=1.0,
        inner_stays=False,
        source="measured with ExecuTorch and XNNPACK from Python on x86-64 Linux, 2 threads, ltx fp32, streamed at "
        "256x256 only; the whole clip was not measured",
    ),
}


def overhead_of(runtime: str) -> Overhead:
    """Raises ExportError for a runtime that was not measured."""
    if runtime not in OVERHEADS:
        raise ExportError(
            f"What {runtime} takes beside a model's own memory has not been measured; it has for "
            f"{', '.join(OVERHEADS)}."
        )
    return OVERHEADS[runtime]
