"""Rewrites of exported graphs: what one is, and how a list of them is applied.

A rewrite replaces a pattern of ATen ops by others that compute the same function in a form that the target's
hardware takes or runs faster. It never changes the mathematics. What changes it is another architecture, and has to
be trained.

To add one: a file in `convert/rewrites/` that exports one `Rewrite`, one entry in `rewrites/__init__.py`, and
its place in the targets that want it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from handheld.runtime.manifest import Refusal, RewriteRecord

from .capture import capture, fold_constants
from .nodes import argument, constant_of, dtype_of, is_call, is_constant, keywords, module_of, shape_of

# What describes rewrites is here; how they read nodes and get their graphs is offered with it.
__all__ = [
    "Case",
    "Graph",
    "GraphPass",
    "Rewrite",
    "Watch",
    "apply",
    "argument",
    "capture",
    "constant_of",
    "dtype_of",
    "fold_constants",
    "is_call",
    "is_constant",
    "keywords",
    "max_rank",
    "module_of",
    "shape_of",
]

# Called with the name of a rewrite, the node that it replaces and the node that takes its place.
Watch = Callable[[str, fx.Node, fx.Node], None]


@dataclass(frozen=True)
class Case:
    """A module that a rewrite is tested on.

    Attributes:
        build: makes the module.
        shape: of its one input.
        applied: how often the rewrite applies.
        refused: for a near-miss, a part of the reason that every refusal gives; None where the pattern is
            not even matched or where the rewrite applies.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    applied: int = 1
    refused: str | None = None


@dataclass(frozen=True)
class Rewrite:
    """One substitution.

    Attributes:
        name: what the manifest and the reports call it.
        why: the fact about the hardware or runtime that wants it.
        match: given a node, the nodes that the pattern is made of (root first), or None.
        check: given a match, why the rewrite must leave it alone, or None.
        replace: given the graph and a match, the node that takes the root's place.
        keeps_keywords: whether `replace` hands on the keyword arguments of the nodes that it matches, such as
            `alpha` of `add` and `dtype` of `mean`. Where it does not, a match that has one is refused.
        cases: modules that it applies to.
        near_misses: modules that look alike and stay untouched.
    """

    name: str
    why: str
    match: Callable[[fx.Node], tuple[fx.Node, ...] | None]
    check: Callable[[tuple[fx.Node, ...]], str | None]
    replace: Callable[[Graph, tuple[fx.Node, ...]], fx.Node]
    cases: tuple[Case, ...] = ()
    near_misses: tuple[Case, ...] = ()
    keeps_keywords: bool = False

    def refusal(self, match: tuple[fx.Node, ...]) -> str | None:
        """Why a match must be left alone, or None."""
        if not self.keeps_keywords:
            for node in match:
                if given := keywords(node):
                    written = ", ".join(f"{name}={value}" for name, value in given.items())
                    return f"{node.name} has {written}, which this rewrite does not keep"
        return self.check(match)

    def run(self, graph: Graph) -> list[RewriteRecord]:
        """Apply in place until no unrefused match is left."""
        nodes = graph.module.graph.nodes
        count = 0
        refused: dict[str, Refusal] = {}
        changed = True
        while changed:
            changed = False
            for node in list(nodes):
                if node.name in refused or node._erased:
                    continue
                match = self.match(node)
                if match is None:
                    continue
                reason = self.refusal(match)
                if reason is not None:
                    refused[node.name] = Refusal(node.name, module_of(node), reason)
                    continue
                self.substitute(graph, match)
                count += 1
                changed = True
            if changed:
                _drop_dead_code(graph.module.graph)
        return [RewriteRecord(self.name, count, tuple(refused.values()))]

    def substitute(self, graph: Graph, match: tuple[fx.Node, ...]) -> None:
        """Replace one match that `refusal` gives no reason against."""
        root = match[0]
        with graph.at(root):
            new = self.replace(graph, match)
        assert shape_of(new) == shape_of(root), (
            f"{self.name} changed {root.name} from {shape_of(root)} to {shape_of(new)}"
        )
        assert dtype_of(new) == dtype_of(root), f"{self.name} changed the dtype of {root.name}"
        if graph.watch is not None:
            graph.watch(self.name, root, new)
        root.replace_all_uses_with(new)
        graph.module.graph.erase_node(root)


class GraphPass(Protocol):
    """One entry of a target's list: a `Rewrite`, or a `Choice` among several.

    A pass over a graph; a pass over a clip, of a streamed decoder, is `runtime.stream_plan.Pass`.
    """

    def run(self, graph: Graph) -> list[RewriteRecord]:
        """Change the graph in place and say what was done, one record per rewrite."""


class Graph:
    """An exported graph under construction. New nodes go before the root that is being replaced."""

    def __init__(self, module: fx.GraphModule, watch: Watch | None = None) -> None:
        self.module = module
        self.watch = watch
        self._root: fx.Node | None = None
        self._constants = 0
        self._names: dict[tuple[Any, ...], str] = {}

    def at(self, root: fx.Node) -> Any:
        """Context in which `call` and `constant` insert before `root` and inherit its source module."""
        self._root = root
        return self.module.graph.inserting_before(root)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Insert a call of an ATen overload; its shape is worked out on meta tensors."""
        node = self.module.graph.call_function(target, args, kwargs)
        values, named = fx.map_arg(
            (args, kwargs), lambda n: torch.empty(shape_of(n), dtype=dtype_of(n), device="meta")
        )
        node.meta["val"] = target(*values, **named)
        self._inherit(node)
        return node

    def constant(self, value: Tensor) -> fx.Node:
        """Insert a constant of the graph. Equal ones are stored once: a decoder that runs chunk by chunk reads its
        weights in every chunk."""
        value = value.detach().contiguous()
        key = (value.dtype, tuple(value.shape), _digest(value))
        name = self._names.get(key)
        if name is None or not hasattr(self.module, name):
            while hasattr(self.module, f"_constant_{self._constants}"):
                self._constants += 1
            name = self._names[key] = f"_constant_{self._constants}"
            self.module.register_buffer(name, value)
        node = self.module.graph.get_attr(name)
        node.meta["val"] = torch.empty_like(value, device="meta")
        self._inherit(node)
        return node

    def value(self, node: fx.Node) -> Tensor:
        """The tensor behind a parameter or constant of the graph."""
        return constant_of(node).detach()

    def _inherit(self, node: fx.Node) -> None:
        assert self._root is not None, "use Graph.at first"
        for key in ("nn_module_stack", "source_fn_stack"):
            if key in self._root.meta:
                node.meta[key] = self._root.meta[key]


def _digest(value: Tensor) -> bytes | int:
    """What tells one constant from others. A tensor without values, as costs are estimated on, is its own."""
    if value.is_meta or isinstance(value, FakeTensor):
        return id(value)
    return hashlib.sha256(value.cpu().reshape(-1).view(torch.uint8).numpy()).digest()


def apply(module: fx.GraphModule, passes: Sequence[GraphPass], watch: Watch | None = None) -> list[RewriteRecord]:
    """Apply rewrites, and choices between rewrites, in order and in place.

    Args:
        watch: called at every place, before the replaced node goes; it raises for a result that is wrong.

    Returns what each rewrite did, in the same order. A rewrite that yields another shape or dtype than the
    pattern had, or an invalid graph, raises AssertionError naming it: that is a defect of the rewrite.
    """
    report: list[RewriteRecord] = []
    graph = Graph(module, watch)
    for step in passes:
        records = step.run(graph)
        report += records
        # `run` leaves a graph in which it found nothing as it was.
        if any(record.applied for record in records):
            module.graph.lint()
    _drop_unused_attributes(module)
    module.recompile()
    return report


def _drop_dead_code(graph: fx.Graph) -> None:
    """What `fx.Graph.eliminate_dead_code` does, which asks each node whether it has a side effect, and slowly. Here
    only those without users are asked."""
    for node in reversed(graph.nodes):
        if not node.users and not node.is_impure():
            graph.erase_node(node)


def _drop_unused_attributes(module: fx.GraphModule) -> None:
    """Delete parameters and buffers that no node reads, so that no artefact carries weights twice."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    owned = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    owned += [name for name, _ in module.named_buffers(remove_duplicate=False)]
    for name in owned:
        if name not in used:
            path, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(path) if path else module, leaf)


def max_rank(module: fx.GraphModule) -> int:
    """Highest rank of any tensor in the graph."""
    return max(len(shape_of(n)) for n in module.graph.nodes if isinstance(n.meta.get("val"), Tensor))
