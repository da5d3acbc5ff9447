"""Lowering a streamed decoder: every segment as a program of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from handheld.runtime.manifest import RewriteRecord
from handheld.runtime.stream_plan import StreamPlan

from ..errors import ExportError
from ..lowering import Progress, Step, lower, rewritten_for
from ..target import Job, Lowered, Target
from .cuts import PassCut
from .segments import SegmentModule, build
from .weight_price import WeightPrice


@dataclass(frozen=True)
class Streamed:
    """A lowered stream: the plan, and what lowering its segments tells the manifest, put together."""

    plan: StreamPlan
    lowered: Lowered
    rewrites: tuple[RewriteRecord, ...]


def lower_stream(
    model: nn.Module,
    target: Target,
    precision_name: str,
    cuts: Sequence[PassCut],
    latents: Tensor,
    folder: Path,
    progress: Progress,
    provenance: Mapping[str, Any] | None = None,
    *,
    validate: bool = False,
) -> Streamed:
    """Write a program for each segment into `folder`, which is made.

    Args:
        latents: (1, C, T', H', W'), of the height and width that the programs get.
        provenance: where the weights come from.
        validate: check each place of each rewrite as it is applied.

    Raises ExportError for a target or precision that is not streamed, and as `export` does.
    """
    precision = target.precision(precision_name)
    check_streams(target, precision_name)
    height, width = latents.shape[3:]
    plan, modules = build(model, cuts, height, width, "{}" + PurePosixPath(target.filename).suffix)
    weight_price = WeightPrice(model)
    folder.mkdir()
    parts: list[Lowered] = []
    records: list[tuple[RewriteRecord, ...]] = []
    for index, module in enumerate(modules, start=1):
        which = f"segment {index} of {len(modules)}: "
        own = weight_price.in_segment(precision, module.plan.units)

        def report(step: Step, which: str = which) -> None:
            progress(Step(step.target, which + step.doing))

        inputs = example(module)
        with torch.no_grad():
            outputs = module(*inputs)
        rewritten = rewritten_for(target, own, module, inputs, outputs, report, validate=validate)
        report(Step(target.name, f"lowering to {target.runtime} {precision_name}"))
        segment = module.plan
        job = Job(
            *(rewritten.graph, inputs, precision_name, folder / segment.program),
            input_names=segment.input_names,
            output_names=segment.output_names,
            streamed=True,
            provenance=provenance or {},
        )
        lowered = lower(target, job)
        parts.append(lowered)
        records.append(rewritten.rewrites)
    settings = {**parts[0].settings, "segments": len(parts)}
    delegation = _added([part.delegation for part in parts if part.delegation])
    whole = Lowered(parts[0].input_dtype, parts[0].output_dtype, settings, delegation)
    return Streamed(plan, whole, _merged(records))


def check_streams(target: Target, precision: str) -> None:
    """Raises ExportError where a target, or a precision of it, is not streamed."""
    if not target.streams:
        raise ExportError(f"Target {target.name} is not exported for streaming; leave it out or --stream.")
    if target.precision(precision).calibrated:
        raise ExportError(
            f"Precision {precision} is calibrated on whole clips and is not exported for streaming; {target.name} "
            f"streams in {', '.join(name for name, p in target.precisions.items() if not p.calibrated)}."
        )


def example(module: SegmentModule) -> tuple[Tensor, ...]:
    """Inputs of a segment: random frames and states, and the selects of a clip of one frame, all borders."""
    generator = torch.Generator().manual_seed(0)
    segment = module.plan
    x, *states = (torch.randn(shape, generator=generator) for shape in (segment.input, *segment.states))
    selects = (torch.from_numpy(select) for select in segment.selects(0, 1))
    return (x, *selects, *states)


def _merged(segments: Iterable[tuple[RewriteRecord, ...]]) -> tuple[RewriteRecord, ...]:
    """One record a rewrite, over all segments, which had the same list of them."""
    return tuple(
        RewriteRecord(
            same[0].name,
            sum(record.applied for record in same),
            tuple(refusal for record in same for refusal in record.refused),
            tuple(selection for record in same for selection in record.selected),
        )
        for same in zip(*segments)
    )


def _added(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The accounts of several delegations in one: numbers added, lists joined."""
    if not parts:
        return None
    total: dict[str, Any] = {}
    for key, value in parts[0].items():
        values = [part[key] for part in parts]
        if isinstance(value, Mapping):
            total[key] = dict(sum((Counter(each) for each in values), Counter()))
        else:
            total[key] = sum(values, type(value)())
    return total
