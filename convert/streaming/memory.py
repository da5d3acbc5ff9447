"""Memory of a streamed decoder, from its graphs, before anything is lowered.

A process that decodes holds, in the pass that runs: what the runtime takes without a model, and for each segment
its weights, the driver's buffers (x, y and the states) and what a loaded program costs. One program runs at a time,
so of the activations inside the programs only the largest counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from handheld.models import TurboVAEDecoder
from handheld.runtime.stream_plan import Segment, StreamPlan

from ..memory import moved_bytes, peak_memory, weight_bytes
from ..rewrite import apply, capture, multiply_adds
from ..target import Precision
from .cuts import Cut, PassCut
from .overheads import Overhead
from .segments import SegmentModule, build
from .units import units_of


@dataclass(frozen=True)
class ProgramSize:
    """What one program needs, from its rewritten graph; bytes are of the artefact's precision.

    Attributes:
        weight_bytes: of parameters and constants.
        inner_bytes: most activations at once, without inputs and outputs.
        multiply_adds, moved_bytes: of a call: see `handheld check`.
    """

    weight_bytes: int
    inner_bytes: int
    multiply_adds: int
    moved_bytes: int


class UnitSizes:
    """Measures the units of a decoder, each as a program of its own on whole frames; equal ones once.

    What a segment needs follows: it has the weights of all its units, and the activations of the largest, as
    rewrites stay inside units. The same holds for windows of fewer rows, in proportion.

    Args:
        model: on the meta device.
        height, width: of the latents.
        precision: the target's, whose rewrites are applied.
    """

    def __init__(self, model: TurboVAEDecoder, height: int, width: int, precision: Precision) -> None:
        self.model, self.height, self.width, self.precision = model, height, width, precision
        self._modules: dict[int, list[SegmentModule]] = {}
        self._known: dict[tuple[object, ...], ProgramSize] = {}
        self._places = {name: index for index, name in enumerate(units_of(model))}

    def segments(self, chunk: int) -> list[Segment]:
        """The units as segments for so many frames a call."""
        return [module.plan for module in self._at(chunk)]

    def of_unit(self, index: int, chunk: int) -> ProgramSize:
        """Of a unit, called with so many frames."""
        module = self._at(chunk)[index]
        key = (repr(module.units), module.plan.input, module.plan.output, module.plan.states)
        if key not in self._known:
            self._known[key] = self._measure(module)
        return self._known[key]

    def of(self, segment: Segment) -> ProgramSize:
        """Of a segment of this decoder."""
        chunk, parts = segment.chunk, []
        for name in segment.units:
            place = self._places[name]
            parts.append(self.of_unit(place, chunk))
            chunk *= self._at(chunk)[place].plan.end.rate
        part = segment.input[2] / self._at(segment.chunk)[self._places[segment.units[0]]].plan.input[2]
        return ProgramSize(
            sum(size.weight_bytes for size in parts),
            int(part * max(size.inner_bytes for size in parts)),
            int(part * sum(size.multiply_adds for size in parts)),
            int(part * sum(size.moved_bytes for size in parts)),
        )

    def _at(self, chunk: int) -> list[SegmentModule]:
        if chunk not in self._modules:
            cuts = [PassCut((Cut(1, chunk),)) for _ in self._places]
            _, self._modules[chunk] = build(self.model, cuts, self.height, self.width)
        return self._modules[chunk]

    def _measure(self, module: SegmentModule) -> ProgramSize:
        graph = capture(module, meta_inputs(module.plan))
        apply(graph, self.precision.rewrites)
        dtype = self.precision.dtype
        return ProgramSize(
            weight_bytes(graph, dtype),
            peak_memory(graph, dtype, inner=True).size_bytes,
            multiply_adds(graph),
            moved_bytes(graph, dtype),
        )


def meta_inputs(segment: Segment) -> tuple[Tensor, ...]:
    """What a segment's program takes, without values."""
    shapes = (segment.input, *segment.select_shapes, *segment.states)
    return tuple(torch.empty(shape, device="meta") for shape in shapes)


@dataclass(frozen=True)
class StreamSize:
    """What a streamed decoder needs.

    Attributes:
        plan: what was measured.
        programs: the size of each segment's program, by its name.
        peak_bytes: most memory of the process, in each pass.
        spool_bytes: of temporary files, per pass: frames for the next one, or strips that are put together.
    """

    plan: StreamPlan
    programs: Mapping[str, ProgramSize]
    peak_bytes: tuple[int, ...]
    spool_bytes: tuple[int, ...]

    @property
    def weight_bytes(self) -> int:
        return sum(size.weight_bytes for size in self.programs.values())


def stream_size(cuts: Sequence[PassCut], frames: int, sizes: UnitSizes, overhead: Overhead) -> StreamSize:
    """What a decoder cut like this needs, for a clip of so many latent frames."""
    plan, _ = build(sizes.model, cuts, sizes.height, sizes.width)
    programs = {segment.program: sizes.of(segment) for segment in plan.segments}
    itemsize = sizes.precision.dtype.itemsize
    peaks, spools = [], []
    for index, part in enumerate(plan.passes):
        held = [
            (programs[segment.program], itemsize * _ends(segment), itemsize * _states(segment))
            for segment in part.segments
        ]
        peaks.append(overhead.peak_bytes(held))
        frames = part.length(frames)
        spooled = index < len(plan.passes) - 1 or len(part.strips) > 1
        spools.append(frames * math.prod(part.output) * itemsize if spooled else 0)
    return StreamSize(plan, programs, tuple(peaks), tuple(spools))


def _ends(segment: Segment) -> int:
    """Elements of x and y."""
    return math.prod(segment.input) + math.prod(segment.output)


def _states(segment: Segment) -> int:
    """Elements of the states."""
    return sum(map(math.prod, segment.states))
