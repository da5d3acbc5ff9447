"""Which ops of a model a target does not take, which rewrites repair that, and what it costs. Nothing is lowered.

Only torch is needed. The graph is captured and rewritten on meta tensors: nothing runs, and no activation takes
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from handheld.runtime.manifest import RewriteRecord

from ..errors import ExportError
from ..target import Target
from .capture import capture
from .cost import moved_bytes, multiply_adds, weight_bytes
from .limits import Limit, Limits, computed_dtype
from .memory import Peak, peak_memory
from .nodes import module_of
from .rewrite import apply


@dataclass(frozen=True)
class Finding:
    """A node that a target does not take, or takes badly.

    Attributes:
        node, op, module: of the graph; `op` as ATen has it, `conv3d`, and `module` may be empty.
        shape, dtype: of what it yields, in the artefact's precision.
        repaired_by: the rewrite that replaces it; None where none does.
    """

    node: str
    op: str
    module: str
    shape: tuple[int, ...]
    dtype: str
    limit: Limit
    repaired_by: str | None = None


@dataclass(frozen=True)
class Costs:
    """What a graph costs; bytes are of the artefact's precision.

    Attributes:
        multiply_adds: of convolutions and matrix products.
        weight_bytes: of parameters and constants.
        activation_bytes: that ops read and write, see `cost.moved_bytes`.
        peak: of activations, see `memory.peak_memory`.
    """

    multiply_adds: int
    weight_bytes: int
    activation_bytes: int
    peak: Peak


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        findings: in the captured graph, in its order.
        left: in the rewritten graph.
        rewrites: what each did, in the order in which they ran.
        captured, rewritten: costs of the two graphs.
    """

    target: str
    precision: str
    findings: tuple[Finding, ...]
    left: tuple[Finding, ...]
    rewrites: tuple[RewriteRecord, ...]
    captured: Costs
    rewritten: Costs

    @property
    def illegal(self) -> tuple[Finding, ...]:
        """Findings of the rewritten graph that do not lower, fail, split the delegate or compute something else."""
        return tuple(finding for finding in self.left if finding.limit.blocks)

    def to_json(self) -> dict[str, Any]:
        """The whole report, as JSON's types."""
        return asdict(self)


def check(model: nn.Module, latents: Tensor, target: Target, precision: str | None = None) -> Report:
    """List what a target does not take of a model, and apply the target's rewrites to see what they repair.

    Args:
        model: latents (1, C, T', H', W') to frames, in fp32.
        latents: an example, which fixes every shape.
        target: need not be installed.
        precision: a name in the target's `precisions`; None is its default.

    Raises ExportError for a model that torch.export refuses, a precision that the target lacks, and a target that
    states no limits.
    """
    precision = precision or target.default_precision
    wanted = target.precision(precision)
    if target.limits is None:
        raise ExportError(f"Target {target.name} states no limits, so there is nothing to check against.")
    graph = capture(model, (latents,))
    captured = _costs(graph, wanted.dtype)
    found = list(_found(graph, target.limits, wanted.dtype))
    repaired: dict[fx.Node, str] = {}
    records: list[RewriteRecord] = []
    for rewrite in wanted.rewrites:
        done = apply(graph, (rewrite,))
        records += done
        names = ", ".join(record.name for record in done if record.applied)
        chosen = {place.node: record.name for record in done for place in record.selected}
        for node, _ in found if names else ():
            if node not in repaired and (node._erased or target.limits(node, wanted.dtype) is None):
                repaired[node] = chosen.get(node.name, names)
    return Report(
        target.name,
        precision,
        tuple(replace(finding, repaired_by=repaired.get(node)) for node, finding in found),
        tuple(finding for _, finding in _found(graph, target.limits, wanted.dtype)),
        tuple(records),
        captured,
        _costs(graph, wanted.dtype),
    )


def _found(graph: fx.GraphModule, limits: Limits, dtype: torch.dtype) -> Iterator[tuple[fx.Node, Finding]]:
    """Nodes of a graph that a runtime does not take, each with its finding."""
    for node in graph.graph.nodes:
        # Calls of other functions only pick one of several results, which a runtime does not see as an op.
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if limit := limits(node, dtype):
            value = node.meta["val"]
            first = value[0] if isinstance(value, tuple | list) else value
            op = node.target.overloadpacket.__name__
            shown = str(computed_dtype(first, dtype)).removeprefix("torch.")
            yield node, Finding(node.name, op, module_of(node), tuple(first.shape), shown, limit)


def _costs(graph: fx.GraphModule, dtype: torch.dtype) -> Costs:
    return Costs(
        multiply_adds(graph), weight_bytes(graph, dtype), moved_bytes(graph, dtype), peak_memory(graph, dtype)
    )
