"""One module for one target: captured, rewritten, checked, lowered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from handheld.runtime.manifest import RewriteRecord

from .choice.choose import Choice
from .errors import ExportError
from .graph.cost import multiply_adds
from .graph.rewrite import apply, capture, max_rank
from .quiet import quiet
from .target import Job, Lowered, Precision, Target

# Rewrites are exact in real arithmetic; what is left is fp32 summation order, 2e-5 on the LTX preset.
_REWRITE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Step:
    """Progress of an export, for whoever shows it: which target, what is being done."""

    target: str
    doing: str


Progress = Callable[[Step], None]


@dataclass(frozen=True)
class Rewritten:
    """A module's graph, rewritten for one target, and what the manifest says of that."""

    graph: fx.GraphModule
    rewrites: tuple[RewriteRecord, ...]
    settings: dict[str, Any]


def rewritten_for(
    target: Target,
    precision: Precision,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    outputs: Sequence[Tensor],
    progress: Progress,
) -> Rewritten:
    """Capture a module's graph, rewrite it for a target and check that it still computes what the module does.

    Args:
        inputs: an example, which fixes the shapes.
        outputs: what the module makes of it.

    Raises ExportError where torch.export refuses the module, or the rewritten graph computes something else.
    """
    progress(Step(target.name, "capturing the graph"))
    graph = capture(module, inputs)
    before = {"max_rank": max_rank(graph), "multiply_adds": multiply_adds(graph)}
    progress(Step(target.name, "rewriting"))
    applied = apply(graph, precision.rewrites)
    after = {"max_rank": max_rank(graph), "multiply_adds": multiply_adds(graph)}
    progress(Step(target.name, "checking the rewritten graph"))
    _check_same_function(graph, inputs, outputs, target.name, applied)
    return Rewritten(graph, tuple(applied), {"captured": before, "rewritten": after})


def _check_same_function(
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    outputs: Sequence[Tensor],
    target: str,
    applied: Sequence[RewriteRecord],
) -> None:
    with torch.no_grad():
        results = graph(*inputs)
    for result, wanted in zip((results,) if isinstance(results, Tensor) else results, outputs, strict=True):
        difference = (result - wanted).abs().max().item()
        allowed = _REWRITE_TOLERANCE * max(1.0, wanted.abs().max().item())
        if not difference <= allowed:  # also catches NaN
            used = ", ".join(entry.name for entry in applied if entry.applied)
            raise ExportError(
                f"After rewriting for {target}, the graph differs from the model by {difference:.3g} (allowed: "
                f"{allowed:.3g}). One of these rewrites is wrong for this model: {used}. Please report it."
            )


def lower(target: Target, job: Job) -> Lowered:
    """Write a job's artefact. Raises ExportError where the target's tools refuse it."""
    with quiet() as chatter:
        try:
            return target.lower(job)
        except OSError:
            raise
        except Exception as error:
            said = [line for line in chatter.getvalue().splitlines() if "ERROR" in line]
            raise ExportError(
                f"{target.name} does not take this model: {type(error).__name__}: {error}".strip()
                + ("\n" + "\n".join(said[-3:]) if said else "")
            ) from error


def costs_of(precision: Precision) -> str:
    """Where the costs come from that its choices between lowerings were made by."""
    return "; ".join(step.costs().source for step in precision.rewrites if isinstance(step, Choice))
