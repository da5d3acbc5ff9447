"""Memory of a streamed decoder, from its graphs, before anything is lowered.

A process that decodes holds, in the pass that runs: what the runtime takes without a model, and for each segment
its weights, the driver's buffers (x, y and the states) and what a loaded program costs. One program runs at a time,
so of the activations inside the programs only the largest counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from handheld.runtime.stream_plan import Segment, StreamPlan

from ..graph.cost import moved_bytes, multiply_adds, weight_bytes
from ..graph.memory import peak_memory
from ..graph.rewrite import apply, capture
from ..target import Precision
from .cuts import Cut, PassCut
from .overheads import Overhead
from .program_size import ProgramSize
from .segments import SegmentModule, build
from .units import on_meta, units_of
from .weight_price import WeightPrice

# Frames are given in fp32 at least, each while the caller still has the one before.
_GIVEN_BYTES = 4
_FRAMES_GIVEN = 2


class UnitSizes:
    """Measures segments of a decoder by the graphs that are lowered; equal ones once.

    A plan's segments are measured as they are. Many plans are compared by their units, each a program of its own on
    whole frames: a segment has about the weights of all its units and the activations of the largest, as rewrites
    stay inside units, and windows of fewer rows need less in proportion.

    Args:
        model: declares layers; on the meta device, or it is copied there.
        height, width: of the latents.
        precision: the target's, whose rewrites are applied.
    """

    def __init__(self, model: nn.Module, height: int, width: int, precision: Precision) -> None:
        self.model, self.height, self.width, self.precision = on_meta(model), height, width, precision
        self._modules: dict[int, list[SegmentModule]] = {}
        self._known: dict[tuple[object, ...], ProgramSize] = {}
        self._count = len(units_of(self.model))
        self._weight_price = WeightPrice(self.model)

    def segments(self, chunk: int) -> list[Segment]:
        """The units as segments for so many frames a call."""
        return [module.plan for module in self._at(chunk)]

    def of_unit(self, index: int, chunk: int) -> ProgramSize:
        """Of a unit, called with so many frames."""
        return self.of(self._at(chunk)[index])

    def of(self, module: SegmentModule) -> ProgramSize:
        """Of a segment of this decoder."""
        key = (repr(module.layers), module.plan.input, module.plan.output, module.plan.states)
        if key not in self._known:
            self._known[key] = self._measure(module)
        return self._known[key]

    def _at(self, chunk: int) -> list[SegmentModule]:
        if chunk not in self._modules:
            cuts = [PassCut((Cut(1, chunk),)) for _ in range(self._count)]
            _, self._modules[chunk] = build(self.model, cuts, self.height, self.width)
        return self._modules[chunk]

    def _measure(self, module: SegmentModule) -> ProgramSize:
        graph = capture(module, meta_inputs(module.plan))
        apply(graph, self._weight_price.in_segment(self.precision, module.plan.units).rewrites)
        dtype = self.precision.dtype
        return ProgramSize(
            weight_bytes(graph, dtype),
            peak_memory(graph, dtype, counted=lambda tensor: not tensor.outer).size_bytes,
            peak_memory(graph, dtype, counted=lambda tensor: tensor.node.op != "placeholder").size_bytes,
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
        multiply_adds: of the clip, all strips and the frames at its ends that are of no clip included.
        recomputed: of these, how many are on rows around a strip that the strip beside it computes too.
    """

    plan: StreamPlan
    programs: Mapping[str, ProgramSize]
    peak_bytes: tuple[int, ...]
    spool_bytes: tuple[int, ...]
    multiply_adds: int
    recomputed: int

    @property
    def weight_bytes(self) -> int:
        return sum(size.weight_bytes for size in self.programs.values())

    @property
    def temporary_bytes(self) -> int:
        """Most of temporary files at once: what a pass writes, beside what it reads."""
        return max(map(sum, pairwise((0, *self.spool_bytes))))


def stream_size(cuts: Sequence[PassCut], frames: int, sizes: UnitSizes, overhead: Overhead) -> StreamSize:
    """What a decoder cut like this needs, for a clip of so many latent frames."""
    plan, modules = build(sizes.model, cuts, sizes.height, sizes.width)
    programs = {module.plan.program: sizes.of(module) for module in modules}
    itemsize = sizes.precision.dtype.itemsize
    peaks, spools = [], []
    work, recomputed = 0, 0.0
    for index, part in enumerate(plan.passes):
        held = [
            (programs[segment.program], itemsize * _ends(segment), itemsize * _states(segment))
            for segment in part.segments
        ]
        read = math.prod(part.segments[0].input[1:]) if index else 0
        given = math.prod(part.output) if part is plan.passes[-1] else 0
        peaks.append(overhead.peak_bytes(held) + passing_bytes(read, given, itemsize))
        height = part.output[1]
        for segment in part.segments:
            height //= segment.scale
        for segment in part.segments:
            done = programs[segment.program].multiply_adds * segment.calls(frames) * len(part.strips)
            recomputed += done * (1 - height / (len(part.strips) * segment.input[2]))
            work += done
            height *= segment.scale
            frames = segment.end.length(frames)
        spooled = index < len(plan.passes) - 1 or len(part.strips) > 1
        spools.append(frames * math.prod(part.output) * itemsize if spooled else 0)
    return StreamSize(plan, programs, tuple(peaks), tuple(spools), work, int(recomputed))


def passing_bytes(read: int, given: int, itemsize: int) -> int:
    """Frames outside of a pass's programs.

    Args:
        read: elements of a frame, or of its rows, that comes from a file; 0 in the first pass.
        given: elements of a frame that goes to the caller; 0 in a pass that is not the last.
    """
    return read * itemsize + _FRAMES_GIVEN * given * max(itemsize, _GIVEN_BYTES)


def _ends(segment: Segment) -> int:
    """Elements of x and y."""
    return math.prod(segment.input) + math.prod(segment.output)


def _states(segment: Segment) -> int:
    """Elements of the states."""
    return sum(map(math.prod, segment.states))
