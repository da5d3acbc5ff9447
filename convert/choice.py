"""Choosing between equivalent lowerings, place by place, by modelled cost.

An option is costed by what it would put in the graph: the op, and the frames put together for it, are copied to a
graph of their own with weights that have shapes and no data, the option is applied there, and the table adds up
the ops that result. So a rewrite needs no cost function of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from handheld.runtime.manifest import Option, Refusal, RewriteRecord, Selection

from .cost import CostTable, weight_bytes
from .rewrite import Graph, Pass, Rewrite, is_call, is_constant, module_of

aten = torch.ops.aten

# What an option may look through to the frames that its input is made of: see `frames.source_frames`.
_ASSEMBLY = (aten.cat.default, aten.slice.Tensor, aten.alias.default)


@dataclass(frozen=True)
class Choice:
    """Several rewrites of the same op, of which each place gets the one that is worth most.

    At each place the option with the lowest share of the modelled time plus `weight_worth` times its share of the
    weights is taken; both shares are of the whole model lowered by the plainest options, so that a layer is not
    made faster at the price of memory that the whole model's time does not repay.

    Attributes:
        options: the last is the plainest, to which the others are compared; all match the same ops.
        costs: gives the table; called when a graph is rewritten, as reading it takes a file.
        weight_worth: 0.4 means that 1 % more weights must buy at least 0.4 % of the time.
    """

    options: tuple[Rewrite, ...]
    costs: Callable[[], CostTable]
    weight_worth: float = 0.4

    def run(self, graph: Graph) -> list[RewriteRecord]:
        table = self.costs()
        places: list[tuple[fx.Node, list[_Estimate]]] = []
        refused: list[Refusal] = []
        for node in graph.module.graph.nodes:
            estimates = [_estimate(option, node, table) for option in self.options]
            found = [estimate for estimate in estimates if estimate is not None]
            if any(estimate.refused is None for estimate in found):
                places.append((node, found))
            elif found:
                refused.append(Refusal(node.name, module_of(node), found[-1].refused or ""))
        total_ns = sum(_plainest(found).cost_ns for _, found in places)
        total_bytes = weight_bytes(graph.module.graph)
        selected: dict[str, list[Selection]] = {option.name: [] for option in self.options}
        for node, found in places:
            best = min(
                (estimate for estimate in reversed(found) if estimate.refused is None),
                key=lambda e: e.cost_ns / total_ns + self.weight_worth * e.weight_bytes / total_bytes,
            )
            reference_ns = _plainest(found).cost_ns
            options = tuple(estimate.option(reference_ns) for estimate in found)
            selected[best.rewrite.name].append(Selection(node.name, module_of(node), options))
            match = best.rewrite.match(node)
            assert match is not None, f"{best.rewrite.name} no longer matches {node.name}"
            best.rewrite.substitute(graph, match)
        graph.module.graph.eliminate_dead_code()
        return [
            RewriteRecord(
                option.name,
                len(selected[option.name]),
                tuple(refused) if option is self.options[-1] else (),
                tuple(selected[option.name]),
            )
            for option in self.options
        ]


def rewrites_of(passes: Iterable[Pass]) -> list[Rewrite]:
    """Every rewrite that the passes may apply, in order, choices' options among them."""
    found: list[Rewrite] = []
    for step in passes:
        if isinstance(step, Choice):
            found += step.options
        elif isinstance(step, Rewrite):
            found.append(step)
    return found


def with_weight_worth(passes: tuple[Pass, ...], factor: float) -> tuple[Pass, ...]:
    """The passes, with weights worth `factor` times as much in each choice."""
    return tuple(
        replace(step, weight_worth=step.weight_worth * factor) if isinstance(step, Choice) else step
        for step in passes
    )


def with_costs(passes: tuple[Pass, ...], table: CostTable) -> tuple[Pass, ...]:
    """The passes, with choices for the table's runtime made by that table."""
    return tuple(
        replace(step, costs=lambda: table)
        if isinstance(step, Choice) and step.costs().runtime == table.runtime
        else step
        for step in passes
    )


@dataclass(frozen=True)
class _Estimate:
    rewrite: Rewrite
    refused: str | None = None
    cost_ns: float = 0.0
    weight_bytes: int = 0

    def option(self, reference_ns: float) -> Option:
        if self.refused is not None:
            return Option(self.rewrite.name, None, None, self.refused)
        return Option(self.rewrite.name, round(self.cost_ns / reference_ns, 3), self.weight_bytes)


def _plainest(found: list[_Estimate]) -> _Estimate:
    return next(estimate for estimate in reversed(found) if estimate.refused is None)


def _estimate(rewrite: Rewrite, node: fx.Node, table: CostTable) -> _Estimate | None:
    match = rewrite.match(node)
    if match is None:
        return None
    if reason := rewrite.check(match):
        return _Estimate(rewrite, refused=reason)
    scratch, root = _alone(node)
    match = rewrite.match(root)
    assert match is not None, f"{rewrite.name} does not match {node.name} taken by itself"
    rewrite.substitute(Graph(scratch), match)
    scratch.graph.eliminate_dead_code()
    return _Estimate(rewrite, None, table.total_ns(scratch.graph.nodes), weight_bytes(scratch.graph))


def _alone(root: fx.Node) -> tuple[fx.GraphModule, fx.Node]:
    """A graph that holds one op, its constants without data, and the cut and joined frames that it reads."""
    graph, holder = fx.Graph(), nn.Module()
    copies: dict[fx.Node, fx.Node] = {}

    def copy(node: fx.Node) -> fx.Node:
        if node in copies:
            return copies[node]
        if is_constant(node):
            name = f"constant_{len(copies)}"
            holder.register_buffer(name, torch.empty_like(node.meta["val"], device="meta"))
            made = graph.get_attr(name)
        elif node is root or is_call(node, *_ASSEMBLY):
            for x in node.all_input_nodes:
                copy(x)
            made = graph.node_copy(node, copies.__getitem__)
        else:
            made = graph.placeholder(node.name)
        made.meta = dict(node.meta)
        copies[node] = made
        return made

    new_root = copy(root)
    graph.output(new_root)
    return fx.GraphModule(holder, graph), new_root
