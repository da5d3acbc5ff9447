"""From a decoder and a choice of cuts to the modules that are exported and the plan that runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from handheld.models import TurboVAEDecoder
from handheld.runtime.stream_plan import Pass, Segment, StreamPlan, Strip

from ..errors import ExportError
from .cuts import PassCut
from .units import Flow, Survey, Unit, as_clip, as_frames, units_of


class SegmentModule(nn.Module):
    """A run of units as one program: `Segment` has its inputs and outputs, all positional."""

    def __init__(self, units: Sequence[Unit], plan: Segment) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.plan = plan

    def forward(self, x: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        convs = len(self.plan.convs)
        flow = Flow(more[:convs], more[convs:])
        y = as_clip(x)
        for unit in self.units:
            y = unit(y, flow)
        return (as_frames(y), *flow.kept)


def build(
    model: TurboVAEDecoder, cuts: Sequence[PassCut], height: int, width: int, filename: str = "{}"
) -> tuple[StreamPlan, list[SegmentModule]]:
    """Cut a decoder into segments.

    Args:
        cuts: a pass each; together all units of the model, in order. In a causal decoder, a segment that takes as
            many frames as the one before gives keeps in step with it.
        height, width: of the latents.
        filename: of a segment's program, from its name.

    Returns:
        The plan, and the module of each of its segments, in order. Only shapes are computed.

    Raises ExportError for cuts that are not those of all units, and strips or chunks that there cannot be.
    """
    units = list(units_of(model).items())
    counted = sum(cut.units for part in cuts for cut in part.cuts)
    if counted != len(units):
        raise ExportError(f"The cuts are of {counted} units; this decoder has {len(units)}.")
    with torch.device("meta"):  # shapes without values
        shapes = list(units_of(TurboVAEDecoder(model.config)).values())
    passes: list[Pass] = []
    modules: list[SegmentModule] = []
    shape: tuple[int, ...] = (model.spec.channels, height, width)
    for part in cuts:
        segments: list[Segment] = []
        frame_height = shape[1]
        for cut in part.cuts:
            own, units = units[: cut.units], units[cut.units :]
            names = tuple(name for name, _ in own)
            program = filename.format(f"segment_{len(modules)}")
            surveyed, shapes = shapes[: cut.units], shapes[cut.units :]
            before = segments[-1] if segments and model.config.decoder_causal else None
            segment = _survey(surveyed, names, cut.chunk, _lead(before, surveyed[0], cut.chunk), shape, program)
            segments.append(segment)
            modules.append(SegmentModule([unit for _, unit in own], segment))
            shape = segment.output[1:]
        windowed, strips = _windows(segments, part.strips, frame_height)
        for module, segment in zip(modules[-len(segments) :], windowed):
            module.plan = segment
        passes.append(Pass(windowed, strips))
    return StreamPlan(tuple(passes)), modules


def _lead(before: Segment | None, first: Unit, chunk: int) -> int:
    """The lead of a segment that begins with a unit.

    In step with the segment before, so that each call of that fills one: then no frame waits for the next. Else
    negative, by the frames that the unit looks ahead: none of them is computed before the clip.
    """
    fits = before is not None and before.output[0] == chunk and before.end.delay < chunk
    return before.end.delay if before is not None and fits else -first.ahead


def _survey(
    units: Sequence[Unit], names: tuple[str, ...], chunk: int, lead: int, shape: tuple[int, ...], program: str
) -> Segment:
    """The segment of some units, which are on the meta device, on whole frames of `shape`, (C, H, W)."""
    if chunk < 1:
        raise ExportError(f"A chunk of {chunk} frames: a call takes 1 or more.")
    flow = Survey(lead)
    x = (chunk, *shape)
    with torch.no_grad():
        y = as_clip(torch.empty(x, device="meta"))
        for unit in units:
            y = unit(y, flow)
        output = tuple(as_frames(y).shape)
    convs, states = tuple(flow.convs), tuple(flow.states)
    return Segment(program, names, x, output, lead, convs, states, flow.at, flow.halo)


def _windows(segments: Sequence[Segment], count: int, height: int) -> tuple[tuple[Segment, ...], tuple[Strip, ...]]:
    """Segments on windows low enough for `count` strips of a frame of `height` rows, and the strips.

    From the last segment to the first: a window holds what the next one reads, with the rows around it that count.
    """
    scale = 1
    for segment in segments:
        scale *= segment.scale
    rows = height * scale
    if not 1 <= count <= rows:
        raise ExportError(f"{count} strips of a frame of {rows} rows; 1 to {rows} are possible.")
    edges = [rows * i // count for i in range(count + 1)]
    needed = list(pairwise(edges))
    windowed: list[Segment] = []
    starts: list[list[int]] = []
    for segment in reversed(segments):
        rows //= segment.scale
        around = -(-segment.halo // segment.scale)
        wanted = [
            (max(first // segment.scale - around, 0), min(-(-stop // segment.scale) + around, rows))
            for first, stop in needed
        ]
        tall = max(stop - first for first, stop in wanted)
        needed = [(min(first, rows - tall), min(first, rows - tall) + tall) for first, _ in wanted]
        starts.append([first for first, _ in needed])
        windowed.append(_of_rows(segment, tall))
    by_strip = zip(*reversed(starts))
    strips = (Strip(tuple(own), first, last - first) for own, first, last in zip(by_strip, edges, edges[1:]))
    return tuple(reversed(windowed)), tuple(strips)


def _of_rows(segment: Segment, rows: int) -> Segment:
    """A segment for windows of `rows` rows."""
    full = segment.input[2]

    def lower(shape: tuple[int, ...]) -> tuple[int, ...]:
        t, c, h, w = shape
        return t, c, h * rows // full, w

    return replace(
        segment,
        input=lower(segment.input),
        output=lower(segment.output),
        states=tuple(lower(state) for state in segment.states),
    )
