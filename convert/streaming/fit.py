"""Whether a decoder fits a memory budget, whole or streamed, before anything is exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..graph.cost import multiply_adds
from ..graph.memory import lifetimes, live_bytes
from ..graph.rewrite import apply, capture, module_of
from ..target import Target
from .cuts import PassCut, default_cuts
from .memory import StreamSize, UnitSizes
from .overheads import Overhead, overhead_of
from .planner import Planner
from .units import on_meta


@dataclass(frozen=True)
class StageSize:
    """A stage of the decoder, as conv_in, mid_block, up_blocks.0, tail.

    Attributes:
        weight_bytes: as the whole-clip artefact has them.
        whole_bytes: most activations at once while the stage runs on the whole clip, whosever they are.
        state_bytes: frames that a streamed artefact keeps for it, of whole frames.
    """

    name: str
    weight_bytes: int
    whole_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class Proposal:
    """A way to stream: where to cut, and what it takes."""

    cuts: tuple[PassCut, ...]
    size: StreamSize

    @property
    def peak_bytes(self) -> int:
        return max(self.size.peak_bytes)

    def to_json(self) -> dict[str, Any]:
        """Sizes, and of each pass its strips, segments and their chunks."""
        passes = [
            {
                "strips": len(part.strips),
                "peak_bytes": peak,
                "spool_bytes": spool,
                "segments": [
                    {"units": list(segment.units), "chunk": segment.chunk, "rows": segment.input[2]}
                    for segment in part.segments
                ],
            }
            for part, peak, spool in zip(self.size.plan.passes, self.size.peak_bytes, self.size.spool_bytes)
        ]
        return {
            "peak_bytes": self.peak_bytes,
            "weight_bytes": self.size.weight_bytes,
            "temporary_bytes": self.size.temporary_bytes,
            "multiply_adds": self.size.multiply_adds,
            "multiply_adds_around_strips": self.size.recomputed,
            "passes": passes,
        }


@dataclass(frozen=True)
class Fit:
    """What `fit` found. Peaks are of a process that decodes, weights and runtime included.

    Attributes:
        whole_bytes: the peak of decoding the whole clip at once.
        whole_multiply_adds: of that.
        default: streamed as `handheld export --stream` does without a budget.
        proposal: the fastest way to stream within the budget; None where there is none.
        overhead: the runtime's part.
    """

    target: str
    precision: str
    budget_bytes: int
    stages: tuple[StageSize, ...]
    whole_bytes: int
    whole_multiply_adds: int
    default: Proposal
    proposal: Proposal | None
    overhead: Overhead

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "precision": self.precision,
            "budget_bytes": self.budget_bytes,
            "stages": [vars(stage) for stage in self.stages],
            "whole_clip": {"peak_bytes": self.whole_bytes, "multiply_adds": self.whole_multiply_adds},
            "streamed": self.default.to_json(),
            "proposal": self.proposal.to_json() if self.proposal else None,
            "overhead": vars(self.overhead),
        }


def fit(
    model: nn.Module,
    latents: Sequence[int],
    target: Target,
    budget_bytes: int,
    precision: str | None = None,
) -> Fit:
    """Compute what decoding takes of memory, from graphs on the meta device; nothing runs.

    Args:
        model: declares its layers; its weights are not read.
        latents: shape (1, C, T', H', W').
        target: need not be installed.
        precision: a name in the target's `precisions`; None is its default.

    Raises ExportError for a runtime whose overhead was not measured, a precision that the target lacks and a model
    that torch.export refuses.
    """
    overhead = overhead_of(target.runtime)
    name = precision or target.default_precision
    wanted = target.precision(name)
    _, _, frames, height, width = latents
    model = on_meta(model).eval()
    graph = capture(model, (torch.empty(tuple(latents), device="meta"),))
    apply(graph, wanted.rewrites)
    planner = Planner(UnitSizes(model, height, width, wanted), frames, overhead)
    cuts = default_cuts(model, frames)
    proposed = planner.fitting(budget_bytes)
    return Fit(
        target.name,
        name,
        budget_bytes,
        tuple(_stages(graph, wanted.dtype, planner)),
        overhead.whole_clip_bytes(graph, wanted.dtype),
        multiply_adds(graph),
        Proposal(cuts, planner.size(cuts)),
        Proposal(*proposed) if proposed else None,
        overhead,
    )


def whole_clip_bytes(model: nn.Module, latents: Sequence[int], target: Target, precision: str | None = None) -> int:
    """The peak of a process that decodes a whole clip at once, as `fit` has it."""
    wanted = target.precision(precision or target.default_precision)
    graph = capture(on_meta(model).eval(), (torch.empty(tuple(latents), device="meta"),))
    apply(graph, wanted.rewrites)
    return overhead_of(target.runtime).whole_clip_bytes(graph, wanted.dtype)


def choose_cuts(
    model: nn.Module, latents: Sequence[int], target: Target, precision: str, budget_bytes: int
) -> tuple[PassCut, ...] | None:
    """The fastest cuts within a budget, as `fit` proposes them; None where there are none."""
    _, _, frames, height, width = latents
    sizes = UnitSizes(model, height, width, target.precision(precision))
    found = Planner(sizes, frames, overhead_of(target.runtime)).fitting(budget_bytes)
    return found[0] if found else None


def _stages(graph: fx.GraphModule, dtype: torch.dtype, planner: Planner) -> list[StageSize]:
    weights: dict[str, int] = {}
    peaks: dict[str, int] = {}
    states: dict[str, int] = {}
    for name, size_bytes in planner.state_bytes().items():
        states[_stage_of(name)] = states.get(_stage_of(name), 0) + size_bytes
    stage, last = next(iter(states)), list(states)[-1]
    seen: set[str] = set()
    for node, live in live_bytes(graph, lifetimes(graph, dtype)).items():
        if node.op == "get_attr":
            continue
        own = _stage_of(module_of(node))
        stage = own if own in states else last if own else stage
        peaks[stage] = max(peaks.get(stage, 0), live)
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source.target not in seen:
                seen.add(str(source.target))
                weights[stage] = weights.get(stage, 0) + _held_bytes(graph, str(source.target), dtype)
    return [StageSize(name, weights.get(name, 0), peak, states.get(name, 0)) for name, peak in peaks.items()]


def _stage_of(module: str) -> str:
    """The stage of a module: the first name in its path, with a number that follows. Empty for none."""
    first, *rest = module.split(".")
    return f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first


def _held_bytes(graph: fx.GraphModule, target: str, dtype: torch.dtype) -> int:
    value: Any = graph
    for part in target.split("."):
        value = getattr(value, part)
    return value.numel() * (dtype if value.dtype == torch.float32 else value.dtype).itemsize
