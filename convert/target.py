"""What a target is: a runtime, an ordered list of rewrites per precision, and a way to lower."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from handheld.runtime.manifest import Tolerance

from .choice.choose import Choice, rewrites_of, with_costs, without
from .choice.costs import CostTable
from .errors import ExportError
from .graph.limits import Limits
from .graph.rewrite import GraphPass
from .pixels import Form

# The lowest PSNR of an fp16 artefact whose sums are in fp32, at peak 2.0: a single wrong layer stays below 0.05 in
# absolute error and falls under this. Measured on tiny at 64x64x9, random weights and latents: 75.5 dB in
# onnxruntime, 69.9 in the reference evaluator of Core ML.
FP16_MIN_PSNR_DB = 60.0

# The same where kernels sum in fp16 too: 56.1 dB in XNNPACK, measured there; no GPU was measured.
FP16_SUMS_MIN_PSNR_DB = 50.0


@dataclass(frozen=True)
class Shape:
    """A further shape of an artefact: what is lowered to a method beside the first one.

    Attributes:
        method: its name in the artefact.
        graph, inputs, calibration: as in `Job`.
    """

    method: str
    graph: fx.GraphModule
    inputs: tuple[Tensor, ...]
    calibration: tuple[Tensor, ...]


@dataclass(frozen=True)
class Job:
    """One artefact to lower.

    Attributes:
        graph: rewritten, fp32, with fixed shapes; not to be changed.
        inputs: the example that it was captured with, fp32; of a whole decoder the latents, (1, C, T, H, W).
        precision: a name in the target's `precisions`.
        path: file or folder to write.
        calibration: latents of the example's shape, at least one, best real ones: what activations' ranges are
            taken from in precisions that quantise them, for graphs of one input.
        more: further shapes; only for targets with `several_shapes`.
        input_names, output_names: in the artefact, where the runtime has names; in order.
        streamed: a segment, called again and again with its own states: a runtime that computes in fp16 may take
            and give them in fp16.
        provenance: where the weights come from, for artefacts that have room for it.
        dynamic: axes of the one input that are symbols in `graph`; only for targets with `dynamic`.
    """

    graph: fx.GraphModule
    inputs: tuple[Tensor, ...]
    precision: str
    path: Path
    calibration: tuple[Tensor, ...] = ()
    more: tuple[Shape, ...] = ()
    input_names: tuple[str, ...] = ("latents",)
    output_names: tuple[str, ...] = ("frames",)
    streamed: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    dynamic: tuple[int, ...] = ()

    def shapes(self, first: str) -> tuple[Shape, ...]:
        """All shapes, the first of them as the method `first`."""
        return (Shape(first, self.graph, self.inputs, self.calibration), *self.more)


@dataclass(frozen=True)
class Lowered:
    """What lowering tells the manifest.

    Attributes:
        input_dtype, output_dtype: what the artefact takes and gives, in numpy's words.
        settings: choices that were made, for people who reproduce the artefact.
        delegation: delegates, nodes inside and nodes outside by op, where the runtime delegates.
    """

    input_dtype: str = "float32"
    output_dtype: str = "float32"
    settings: Mapping[str, Any] = field(default_factory=dict)
    delegation: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Precision:
    """How one precision is reached on a target.

    Attributes:
        rewrites: applied in this order.
        tolerance: how far from the fp32 eager output, nominally in [-1, 1], an artefact may be.
        dtype: what activations are computed in; the graph that is rewritten is fp32 in every precision.
        calibrated: whether it depends on `Job.calibration`.
    """

    rewrites: tuple[GraphPass, ...]
    tolerance: Tolerance
    dtype: torch.dtype = torch.float32
    calibrated: bool = False


@dataclass(frozen=True)
class Target:
    """A runtime that a model is lowered to.

    Attributes:
        name: as in `--target`.
        extra: what brings `packages`: `pip install handheld[extra]`.
        runtime: name of the session that runs the artefact.
        filename: the artefact's file or folder.
        packages: importable packages that lowering needs.
        precisions: by name.
        lower: writes a job's artefact.
        limits: what the runtime does not take, for `handheld check`.
        default_precision: for who names none.
        method: the first shape's in the artefact.
        several_shapes: whether one artefact can hold more.
        streams: whether a decoder is also exported for streaming.
        left_out: rewrites that `without` took from the lists.
        dynamic: whether it also takes graphs with symbolic sizes.
        pixel_form: how 8-bit RGBA leaves its artefacts: `uint8`, or `int32`, one value a pixel, where the runtime
            has no unsigned bytes.
    """

    name: str
    extra: str
    runtime: str
    filename: str
    packages: tuple[str, ...]
    precisions: Mapping[str, Precision]
    lower: Callable[[Job], Lowered]
    limits: Limits | None = None
    default_precision: str = "fp32"
    method: str = "forward"
    several_shapes: bool = False
    streams: bool = False
    left_out: tuple[str, ...] = ()
    dynamic: bool = False
    pixel_form: Form = "uint8"

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def with_costs(self, table: CostTable) -> Target:
        """This target, its choices between lowerings made by another table. Raises ExportError if it has none."""
        precisions = {
            name: replace(precision, rewrites=with_costs(precision.rewrites, table))
            for name, precision in self.precisions.items()
        }
        if precisions == dict(self.precisions):
            raise ExportError(
                f"The cost table is for {table.runtime}; target {self.name} makes no choice by such a table. "
                f"Make one with `handheld tune {self.name}`."
            )
        return replace(self, precisions=precisions)

    def without(self, names: Collection[str]) -> Target:
        """This target without the rewrites of these names; those that it does not have change nothing."""
        if not names:
            return self
        precisions = {
            name: replace(precision, rewrites=without(precision.rewrites, names))
            for name, precision in self.precisions.items()
        }
        return replace(self, precisions=precisions, left_out=(*self.left_out, *sorted(set(names))))

    def rewrite_names(self) -> set[str]:
        """The rewrites of all precisions, options of choices among them."""
        return {r.name for precision in self.precisions.values() for r in rewrites_of(precision.rewrites)}

    def precision(self, name: str) -> Precision:
        """A precision of this target. Raises ExportError naming what there is."""
        if name not in self.precisions:
            raise ExportError(f"Target {self.name} has no precision {name!r}; it has {', '.join(self.precisions)}.")
        return self.precisions[name]


def choose_by(targets: Sequence[Target], table: CostTable) -> list[Target]:
    """The targets, with the choices of those that choose by a table of its runtime made by this table.

    Raises ExportError where no target does.
    """
    able = [t for t in targets if any(_chooses_by(p.rewrites, table) for p in t.precisions.values())]
    if not able:
        raise ExportError(
            f"The cost table is for {table.runtime}; none of {', '.join(t.name for t in targets)} makes a choice "
            f"by such a table. Make one with `handheld tune {targets[0].name}`."
        )
    return [target.with_costs(table) if target in able else target for target in targets]


def _chooses_by(passes: Sequence[GraphPass], table: CostTable) -> bool:
    return any(isinstance(step, Choice) and step.costs().runtime == table.runtime for step in passes)


def leave_out(targets: Sequence[Target], names: Collection[str]) -> list[Target]:
    """The targets without the rewrites of these names.

    Raises ExportError for a name that no rewrite of any of the targets has.
    """
    known = sorted(set().union(*(target.rewrite_names() for target in targets)))
    if unknown := sorted(set(names) - set(known)):
        raise ExportError(
            f"No rewrite {', '.join(unknown)} to leave out; {', '.join(t.name for t in targets)} has "
            f"{', '.join(known)}."
        )
    return [target.without(names) for target in targets]


def in_half(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """Both in half precision. A copy: `half()` would turn the caller's model, which shares weights."""
    return copy.deepcopy(graph).half(), tuple(x.half() for x in inputs)
