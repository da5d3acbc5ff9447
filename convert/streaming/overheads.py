"""What a runtime takes beside weights, buffers and activations: measured constants, one row per runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

from ..errors import ExportError
from ..memory import peak_memory, weight_bytes
from .arena import arena_bytes

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
        outputs_stay: whether each program has memory of its own for what it gives while it is loaded, or the driver
            has it written to memory that programs share.
        inner: resident bytes per byte of activations inside a program, of a pass that takes the most of these.
        whole: the same of one program for a whole clip; None where `arena` computes it.
        source: how and where this was measured.
    """

    process_bytes: int
    program_bytes: int
    weights: float
    outputs_stay: bool
    inner: float
    whole: float | None
    source: str

    def peak_bytes(self, held: Sequence[tuple[ProgramSize, int, int]]) -> int:
        """Of a pass.

        Args:
            held: of each segment its program, the bytes of x and y, and those of its states.
        """
        inner = [size.inner_bytes for size, _, _ in held]
        states = [state for _, _, state in held]  # the old ones; new ones are written beside them
        return int(
            self.process_bytes
            + len(held) * self.program_bytes
            + sum(self.weights * size.weight_bytes + ends for size, ends, _ in held)
            + sum(states)
            + (sum(states) if self.outputs_stay else max(states))
            + self.inner * max(inner)
        )

    def whole_clip_bytes(self, graph: fx.GraphModule, dtype: torch.dtype) -> int:
        """Of one program on a whole clip, from its graph.

        Args:
            dtype: in which the artefact holds what the graph has in fp32.
        """
        if self.whole is None:
            activations = arena_bytes(graph, dtype)
        else:
            activations = int(self.whole * peak_memory(graph, dtype).size_bytes)
        weights = int(self.weights * weight_bytes(graph, dtype))
        return self.process_bytes + self.program_bytes + weights + activations


OVERHEADS: dict[str, Overhead] = {
    "onnxruntime": Overhead(
        process_bytes=106 * _MB,
        program_bytes=1 * _MB,
        weights=1.0,
        outputs_stay=False,
        # An arena that grows by doubling, and keeps what it has for all programs.
        inner=2.5,
        whole=None,
        source="measured with onnxruntime on x86-64 Linux, 2 threads, fp32: ltx streamed at 256x256 and 704x1280; "
        "passes of tiny at 704x1280 took 1.7 to 3 bytes for each of theirs; whole clips by its allocator, run on "
        "sizes alone",
    ),
    "executorch": Overhead(
        process_bytes=240 * _MB,  # its Python bindings import torch
        program_bytes=0,
        weights=1.0,
        outputs_stay=True,
        # XNNPACK's workspace, which all programs share, and for a moment the one that it outgrew. Measured when
        # passes in strips still held two strips' buffers: too much for those.
        inner=2.4,
        whole=2.0,
        source="measured with ExecuTorch and XNNPACK from Python on x86-64 Linux, 2 threads, fp32: passes of ltx "
        "at 704x1280 took 1.1 to 2.5 bytes for each of theirs, a whole clip of 33 frames of 256x256 2.0",
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
