"""From a decoder and a choice of cuts to the modules that are exported and the plan that runs them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from handheld.models.layers import Layer, run_all
from handheld.runtime.stream_plan import Pass, Segment, StreamPlan, Strip

from ..errors import ExportError
from .call import Call, Survey, as_clip, as_frames
from .cuts import PassCut
from .units import is_causal, modules_of, on_meta, spec_of, units_of


class SegmentModule(nn.Module):
    """A run of units as one program: `Segment` has its inputs and outputs, all positional.

    Its modules have the names that they have in the decoder, and captured graphs too.

    Args:
        units: layers of the decoder.
        plan: the segment.
        identities: sizes of the identity matrices that a call needs.
        model: the decoder.
    """

    def __init__(self, units: Sequence[Layer], plan: Segment, identities: Iterable[int], model: nn.Module) -> None:
        super().__init__()
        self.layers = tuple(units)
        self.plan = plan
        self._sizes = sorted(identities)
        device = next((parameter.device for parameter in model.parameters()), None)
        for size in self._sizes:
            self.register_buffer(f"identity_{size}", torch.eye(size, device=device), persistent=False)
        names = {id(module): name for name, module in model.named_modules()}
        modules = {id(module): module for unit in units for module in modules_of(unit)}
        paths = {names.get(key) or f"function_{i}": module for i, (key, module) in enumerate(modules.items())}
        for path in sorted(paths):  # a module before its own parts
            _place(self, path, paths[path])

    def forward(self, x: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        convs = len(self.plan.convs)
        identities = {size: self.get_buffer(f"identity_{size}") for size in self._sizes}
        call = Call(more[:convs], more[convs:], identities)
        return (as_frames(run_all(self.layers, as_clip(x), call)), *call.kept)


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Make a module a part of another one, under a path of names."""
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    if not hasattr(root, name):
        root.add_module(name, module)


def build(
    model: nn.Module, cuts: Sequence[PassCut], height: int, width: int, filename: str = "{}"
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
    shapes = list(units_of(on_meta(model)).values())
    causal = is_causal(shapes)
    passes: list[Pass] = []
    modules: list[SegmentModule] = []
    shape: tuple[int, ...] = (spec_of(model).channels, height, width)
    for part in cuts:
        segments: list[Segment] = []
        frame_height = shape[1]
        for cut in part.cuts:
            own, units = units[: cut.units], units[cut.units :]
            names = tuple(name for name, _ in own)
            program = filename.format(f"segment_{len(modules)}")
            surveyed, shapes = shapes[: cut.units], shapes[cut.units :]
            before = segments[-1] if segments and causal else None
            segment, identities = _survey(
                surveyed, names, cut.chunk, _lead(before, surveyed[0], cut.chunk), shape, program
            )
            segments.append(segment)
            modules.append(SegmentModule([unit for _, unit in own], segment, identities, model))
            shape = segment.output[1:]
        windowed, strips = _windows(segments, part.strips, frame_height)
        for module, segment in zip(modules[-len(segments) :], windowed):
            module.plan = segment
        passes.append(Pass(windowed, strips))
    return StreamPlan(tuple(passes)), modules


def _lead(before: Segment | None, first: Layer, chunk: int) -> int:
    """The lead of a segment that begins with a unit.

    In step with the segment before, so that each call of that fills one: then no frame waits for the next. Else
    negative, by the frames that the unit looks ahead: none of them is computed before the clip.
    """
    fits = before is not None and before.output[0] == chunk and before.end.delay < chunk
    return before.end.delay if before is not None and fits else -first.early


def _survey(
    units: Sequence[Layer], names: tuple[str, ...], chunk: int, lead: int, shape: tuple[int, ...], program: str
) -> tuple[Segment, set[int]]:
    """The segment of some units, which are on the meta device, on whole frames of `shape`, (C, H, W).

    Also sizes of identity matrices, as `SegmentModule` has them.
    """
    if chunk < 1:
        raise ExportError(f"A chunk of {chunk} frames: a call takes 1 or more.")
    flow = Survey(lead)
    x = (chunk, *shape)
    with torch.no_grad():
        y = run_all(units, as_clip(torch.empty(x, device="meta")), flow)
    output = tuple(as_frames(y).shape)
    halo = min(flow.halo, output[2])  # windows of layers that read whole frames have no edges of their own
    segment = Segment(program, names, x, output, lead, tuple(flow.convs), tuple(flow.states), flow.at, halo)
    return segment, flow.identities


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
