"""One module for one target: captured, rewritten, checked, lowered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from handheld.runtime.manifest import RewriteRecord

from .choice.choose import Choice
from .errors import ExportError
from .graph.cost import multiply_adds
from .graph.ranges import beyond_fp16, check_finite
from .graph.rewrite import apply, capture, max_rank
from .graph.validate import TOLERANCE, Validator
from .quiet import quiet
from .target import Job, Lowered, Precision, Target


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
    *,
    validate: bool = False,
    calibration: Sequence[Tensor] = (),
) -> Rewritten:
    """Capture a module's graph, rewrite it for a target and check that it still computes what the module does.

    Args:
        inputs: an example, which fixes the shapes.
        outputs: what the module makes of it.
        validate: check each place of each rewrite as it is applied.
        calibration: for a precision that computes in fp16, clips of the one input, to look for values in that fp16
            cannot hold: `settings["beyond_fp16"]` says which.

    Raises ExportError where torch.export refuses the module, the module holds or makes NaN or infinity, or the
    rewritten graph computes something else: the message names rewrite, node and module.
    """
    check_finite(module, inputs, outputs)
    progress(Step(target.name, "capturing the graph"))
    graph = capture(module, inputs)
    before = {"max_rank": max_rank(graph), "multiply_adds": multiply_adds(graph)}
    progress(Step(target.name, "rewriting"))
    applied = apply(graph, precision.rewrites, Validator(graph, inputs) if validate else None)
    after = {"max_rank": max_rank(graph), "multiply_adds": multiply_adds(graph)}
    progress(Step(target.name, "checking the rewritten graph"))
    if differs := difference(graph, inputs, outputs):
        _blame(module, inputs, outputs, precision)
        used = ", ".join(entry.name for entry in applied if entry.applied)
        raise ExportError(
            f"After rewriting for {target.name}, the graph differs from the model by {differs}, though no place of "
            f"a rewrite does by itself: errors add up, or two rewrites do not go together. Applied: {used}. Please "
            "report it."
        )
    settings: dict[str, Any] = {"captured": before, "rewritten": after}
    if precision.dtype == torch.float16 and calibration:
        progress(Step(target.name, "looking for values that fp16 cannot hold"))
        settings["beyond_fp16"] = [asdict(op) for op in beyond_fp16(graph, ((clip,) for clip in calibration))]
    return Rewritten(graph, tuple(applied), settings)


def _blame(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Sequence[Tensor], precision: Precision) -> None:
    """Raise ExportError that names what makes the rewritten graph differ from the module, if one place does."""
    graph = capture(module, inputs)
    if differs := difference(graph, inputs, outputs):
        raise ExportError(
            f"The graph that torch.export makes of {type(module).__name__} differs from the model by {differs}, "
            "before any rewrite. Does the model compute something else in another call, or in eval mode? Please "
            "report it."
        )
    apply(graph, precision.rewrites, Validator(graph, inputs))


def difference(graph: nn.Module, inputs: tuple[Tensor, ...], outputs: Sequence[Tensor]) -> str:
    """How far a graph is from the outputs and what is allowed; empty where it is not too far."""
    with torch.no_grad():
        results = graph(*inputs)
    for result, wanted in zip((results,) if isinstance(results, Tensor) else results, outputs, strict=True):
        difference = (result - wanted).abs().max().item()
        allowed = TOLERANCE * max(1.0, wanted.abs().max().item())
        if not difference <= allowed:  # also catches NaN
            return f"{difference:.3g} (allowed: {allowed:.3g})"
    return ""


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
