"""Choosing between equivalent lowerings, place by place, by modelled cost.

An option costs what the ops cost that it puts into the graph. They are found by applying it to a copy: the op, and
the ops that put its input frames together, are copied into a graph of their own, where weights have shapes and no
data. The table adds up the ops of the result. So a rewrite needs no cost function of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from handheld.runtime.manifest import Option, Refusal, RewriteRecord, Selection

from ..graph.cost import weight_bytes
from ..graph.memory import lifetimes, live_bytes
from ..graph.nodes import dtype_of, is_call, is_constant, module_of, shape_of
from ..graph.ops import aten
from ..graph.rewrite import Graph, GraphPass, Rewrite
from .costs import CostTable

# Ops that put an input together from frames. Some rewrites look through them: see
# `merge_border_taps.source_frames`.
_ASSEMBLY = (aten.cat.default, aten.slice.Tensor, aten.alias.default)

# onnxruntime's arena holds 1.8 to 2.2 bytes for each byte that is live in the graph: measured on the four presets.
_HELD_PER_LIVE = 2


@dataclass(frozen=True)
class Choice:
    """Several rewrites of the same op. Each place in a graph gets one of them.

    Each place gets the option with the lowest sum of two shares: its share of the modelled time, and `weight_price`
    times its share of the weights. Both are shares of the whole model lowered by the plainest options. So a layer
    does not become faster by weights that take more memory than the time of the whole model justifies.

    The model must not take more memory (weights, and activations at the fullest place) than with the plainest
    options everywhere. If it would, the price of weights is raised in steps until it does not. The record says
    which option a place did not get for that reason.

    Attributes:
        options: all match the same ops. The last is the plainest, and the others are compared with it.
        costs: gives the cost table. It is called when a graph is rewritten, because it reads a file.
        weight_price: 0.4 means that 1 % more weights must save at least 0.4 % of the time.
    """

    options: tuple[Rewrite, ...]
    costs: Callable[[], CostTable]
    weight_price: float = 0.4

    def run(self, graph: Graph) -> list[RewriteRecord]:
        table = self.costs()
        places: list[tuple[fx.Node, list[_Estimate]]] = []
        refused: list[Refusal] = []
        live = live_without(graph.module)
        known: dict[tuple[str, str], _Cost] = {}  # layers of the same shapes cost the same
        for node in graph.module.graph.nodes:
            found = [e for option in self.options if (e := _estimate(option, node, table, live[node], known))]
            if any(estimate.refused is None for estimate in found):
                places.append((node, found))
            elif found:
                refused.append(Refusal(node.name, module_of(node), found[-1].refused or ""))
        taken = self._best([found for _, found in places], weight_bytes(graph.module))
        selected: dict[str, list[Selection]] = {option.name: [] for option in self.options}
        for (node, found), place in zip(places, taken):
            rewrite = place.estimate.rewrite
            options = tuple(place.option(estimate) for estimate in found)
            selected[rewrite.name].append(Selection(node.name, module_of(node), options))
            match = rewrite.match(node)
            assert match is not None, f"{rewrite.name} no longer matches {node.name}"
            rewrite.substitute(graph, match)
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

    def _best(self, places: Sequence[Sequence[_Estimate]], total_bytes: int) -> list[_Taken]:
        """The option that each place gets."""
        plain = [_plainest(found) for found in places]
        total_ns = sum(estimate.cost_ns for estimate in plain)
        most_live = max((estimate.live_bytes for estimate in plain), default=0)
        allowed = _held_bytes(plain)

        def best(weight_price: float, live: float = math.inf) -> list[_Estimate]:
            return [
                min(
                    (e for e in reversed(found) if e.refused is None and e.live_bytes <= live),
                    key=lambda e: e.cost_ns / total_ns + weight_price * e.weight_bytes / total_bytes,
                )
                for found in places
            ]

        price = self.weight_price
        chosen = unlimited = best(price)
        if _held_bytes(unlimited) > allowed:
            chosen = best(price, most_live)
        # This ends: with a high price only weights count, and the plainest options fit.
        while _held_bytes(chosen) > allowed:
            price = 1.25 * price + 0.01
            chosen = best(price, most_live)
        why = (
            "memory: with each layer's best, weights and activations would hold "
            f"{_held_bytes(unlimited) / 1e6:.0f} MB; the plainest hold {allowed / 1e6:.0f} MB"
        )
        return [_Taken(*row, why) for row in zip(chosen, unlimited, plain)]


def rewrites_of(passes: Iterable[GraphPass]) -> list[Rewrite]:
    """Every rewrite that the passes may apply, in order, choices' options among them."""
    found: list[Rewrite] = []
    for step in passes:
        if isinstance(step, Choice):
            found += step.options
        elif isinstance(step, Rewrite):
            found.append(step)
    return found


def without(passes: tuple[GraphPass, ...], names: Collection[str]) -> tuple[GraphPass, ...]:
    """The passes without the rewrites of these names; a choice loses its options of these names, or goes whole."""
    left: list[GraphPass] = []
    for step in passes:
        if isinstance(step, Choice):
            options = tuple(option for option in step.options if option.name not in names)
            left += [replace(step, options=options)] if options else []
        elif not isinstance(step, Rewrite) or step.name not in names:
            left.append(step)
    return tuple(left)


def with_weight_price(passes: tuple[GraphPass, ...], factor: float) -> tuple[GraphPass, ...]:
    """The passes, with the price of weights multiplied by `factor` in each choice."""
    return tuple(
        replace(step, weight_price=step.weight_price * factor) if isinstance(step, Choice) else step
        for step in passes
    )


def with_costs(passes: tuple[GraphPass, ...], table: CostTable) -> tuple[GraphPass, ...]:
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
    live_bytes: int = 0  # of activations of the whole graph, where most are live in the option


@dataclass(frozen=True)
class _Taken:
    """A place: what it gets, the best one without a limit of memory, the plainest, and why they differ."""

    estimate: _Estimate
    unlimited: _Estimate
    plainest: _Estimate
    why: str

    def option(self, of: _Estimate) -> Option:
        """What the manifest says of an option of this place."""
        if of.refused is not None:
            return Option(of.rewrite.name, None, None, of.refused)
        relative_cost = round(of.cost_ns / self.plainest.cost_ns, 3)
        missed = of is self.unlimited and of is not self.estimate
        return Option(of.rewrite.name, relative_cost, of.weight_bytes, self.why if missed else None)


def _held_bytes(estimates: Sequence[_Estimate]) -> int:
    """What a runtime holds at the fullest of the places: see `_HELD_PER_LIVE`."""
    most_live = max((estimate.live_bytes for estimate in estimates), default=0)
    return held_bytes(sum(estimate.weight_bytes for estimate in estimates), most_live)


def _plainest(found: Sequence[_Estimate]) -> _Estimate:
    return next(estimate for estimate in reversed(found) if estimate.refused is None)


@dataclass(frozen=True)
class _Cost:
    """What an option costs by itself.

    Attributes:
        more_live_bytes: of activations, at its fullest place, beyond those of the op that it replaces.
    """

    ns: float
    weight_bytes: int
    more_live_bytes: int


def _estimate(
    rewrite: Rewrite, node: fx.Node, table: CostTable, live: int, known: dict[tuple[str, str], _Cost]
) -> _Estimate | None:
    """What an option costs at a place where `live` bytes are live without it; None where it does not match."""
    match = rewrite.match(node)
    if match is None:
        return None
    if reason := rewrite.refusal(match):
        return _Estimate(rewrite, refused=reason)
    graph, constants, root = _isolated(node)
    key = rewrite.name, _signature(graph)
    if key not in known:
        known[key] = _cost(rewrite, fx.GraphModule(constants, graph), root, table)
    cost = known[key]
    return _Estimate(rewrite, None, cost.ns, cost.weight_bytes, live + cost.more_live_bytes)


def _cost(rewrite: Rewrite, scratch: fx.GraphModule, root: fx.Node, table: CostTable) -> _Cost:
    before = live_without(scratch)[root]
    _substitute(rewrite, scratch, root)
    more = max(live_without(scratch).values()) - before
    return _Cost(table.total_ns(scratch.graph.nodes), weight_bytes(scratch), more)


def _substitute(rewrite: Rewrite, scratch: fx.GraphModule, root: fx.Node) -> None:
    match = rewrite.match(root)
    assert match is not None, f"{rewrite.name} does not match {root.name} taken by itself"
    rewrite.substitute(Graph(scratch), match)
    scratch.graph.eliminate_dead_code()


def _signature(graph: fx.Graph) -> str:
    """Equal for graphs of the same ops on tensors of the same shapes."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    return repr(
        [
            (
                node.op,
                str(node.target) if node.op == "call_function" else "",
                fx.map_arg((node.args, node.kwargs), places.__getitem__),
                None if node.op == "output" else (shape_of(node), dtype_of(node)),
            )
            for node in graph.nodes
        ]
    )


def held_with(rewrite: Rewrite, match: tuple[fx.Node, ...], live: int) -> tuple[int, int]:
    """What a place takes once a rewrite is applied: most bytes of activations live, and bytes of weights more.

    live: bytes of activations that are live at its root without it.
    """
    graph, constants, root = _isolated(match[0], match)
    scratch = fx.GraphModule(constants, graph)
    before, weights = live_without(scratch)[root], weight_bytes(scratch)
    _substitute(rewrite, scratch, root)
    return live + max(live_without(scratch).values()) - before, weight_bytes(scratch) - weights


def held_bytes(weights: int, live: int) -> int:
    """What a runtime holds of so many bytes of weights and live activations."""
    return weights + _HELD_PER_LIVE * live


def live_without(module: fx.GraphModule) -> dict[fx.Node, int]:
    """Bytes of activations that are live while each node runs, between two rewrites."""
    return live_bytes(module, lifetimes(module, inputs_stay=False, free_layouts=True))


def _isolated(root: fx.Node, match: Collection[fx.Node] = ()) -> tuple[fx.Graph, nn.Module, fx.Node]:
    """A copy of an op in a graph of its own, with the ops that cut and join its frames; constants have no data.

    match: other ops to copy with it.
    """
    graph, holder = fx.Graph(), nn.Module()
    copies: dict[fx.Node, fx.Node] = {}

    def copy(node: fx.Node) -> fx.Node:
        if node in copies:
            return copies[node]
        if is_constant(node):
            name = f"constant_{len(copies)}"
            holder.register_buffer(name, torch.empty_like(node.meta["val"], device="meta"))
            made = graph.get_attr(name)
        elif node is root or node in match or is_call(node, *_ASSEMBLY):
            for x in node.all_input_nodes:
                copy(x)
            made = graph.node_copy(node, copies.__getitem__)
        else:
            made = graph.placeholder(node.name)
        made.meta = dict(node.meta)
        copies[node] = made
        return made

    new_root = copy(root)
    # What ops after this place read too stays live through it.
    kept = [
        made
        for node, made in copies.items()
        if node is not root and not is_constant(node) and any(root < user for user in node.users)
    ]
    graph.output((new_root, *kept))
    return graph, holder, new_root
