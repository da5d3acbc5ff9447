"""What a runtime takes beside weights, buffers and activations: measured constants, one row per runtime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ..errors import ExportError
from ..graph.cost import weight_bytes
from ..graph.memory import peak_memory
from .arena import arena_bytes
from .program_size import ProgramSize

_MB = 1_000_000

# The needs of programs are known within this factor. Of two that differ by less, either may need more.
_UNSURE = 1.25


@dataclass(frozen=True)
class Overhead:
    """How much memory a runtime's process takes, as a function of what its programs need.

    Attributes:
        process_bytes: resident with Python, numpy and the runtime, before a program is loaded.
        program_bytes: of each loaded program, beside its weights.
        weights: resident bytes per byte of weights.
        owns_outputs: whether each program copies its outputs to memory of its own, which it keeps while it is
            loaded. Else the driver gives it memory, which programs share.
        inner: resident bytes per byte of activations inside a program.
        regrows: whether programs share a workspace that grows by taking a larger one before the old one is
            released. Else a pass takes what its largest program takes.
        whole: resident bytes per byte of activations of one program for a whole clip. None: `arena` computes them.
        source: how and where this was measured.
    """

    process_bytes: int
    program_bytes: int
    weights: float
    owns_outputs: bool
    inner: float
    regrows: bool
    whole: float | None
    source: str

    def peak_bytes(self, held: Sequence[tuple[ProgramSize, int, int]]) -> int:
        """The most memory of the process during a pass.

        Args:
            held: for each segment the size of its program, the bytes of x and y, and the bytes of its states.
        """
        states = [state for _, _, state in held]  # a call reads the old states and writes new ones beside them
        return int(
            self.process_bytes
            + len(held) * self.program_bytes
            + sum(self.weights * size.weight_bytes + ends for size, ends, _ in held)
            + sum(states)
            + (sum(states) if self.owns_outputs else max(states))
            + self.workspace_bytes(self.inner_bytes(size) for size, _, _ in held)
        )

    def inner_bytes(self, size: ProgramSize) -> int:
        """Activations of a program, without those in the driver's buffers."""
        return size.written_bytes if self.owns_outputs else size.inner_bytes

    def workspace_bytes(self, inner: Iterable[float]) -> float:
        """The most memory for activations inside the programs of a pass, of which one runs at a time.

        Args:
            inner: `inner_bytes` of each program, in the order in which they first run.
        """
        most = taken = 0.0
        for needed in inner:
            outgrown = self.regrows and needed != taken and needed * _UNSURE > taken
            most = max(most, needed + taken if outgrown else needed)
            taken = max(taken, needed)
        return self.inner * most

    def whole_clip_bytes(self, graph: fx.GraphModule, dtype: torch.dtype) -> int:
        """Memory of the process with one program for a whole clip, from its graph.

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
        owns_outputs=False,
        # An arena that grows by doubling, and keeps what it has for all programs.
        inner=2.5,
        regrows=False,
        whole=None,
        source="measured with onnxruntime on x86-64 Linux, 2 threads, fp32: ltx streamed at 256x256 and 704x1280; "
        "passes of tiny at 704x1280 took 1.7 to 3 bytes for each of theirs; whole clips by its allocator, run on "
        "sizes alone",
    ),
    "executorch": Overhead(
        process_bytes=240 * _MB,  # its Python bindings import torch
        program_bytes=0,
        weights=1.0,
        owns_outputs=True,
        # XNNPACK's workspace, which all programs share, and for a moment the one that it outgrew.
        inner=1.25,
        regrows=True,
        whole=2.0,
        source="measured with ExecuTorch and XNNPACK from Python on x86-64 Linux, 2 threads, fp32: programs of ltx "
        "at 704x1280 and hunyuan at 720x1280 took 0.7 to 1.45 bytes for each of theirs, most of them 1.0 to 1.3; a "
        "whole clip of 33 frames of 256x256 2.0",
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
