"""Rewrites of exported graphs: what one is, and how a list of them is applied.

A rewrite replaces a pattern of ATen ops by others that compute the same function in a form that the target's
hardware takes or runs faster. It never changes the mathematics. What changes it is another architecture, and has to
be trained.

To add one: a file in `convert/rewrites/` that exports one `Rewrite`, one entry in `rewrites/__init__.py`, and
its place in the targets that want it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from handheld.runtime.manifest import Refusal, RewriteRecord

from ..errors import ExportError
from .normal import normalise

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
            graph.module.graph.eliminate_dead_code()
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
        """Insert a constant of the graph."""
        name = f"_constant_{self._constants}"
        while hasattr(self.module, name):
            self._constants += 1
            name = f"_constant_{self._constants}"
        self.module.register_buffer(name, value.detach().contiguous())
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


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the tensor that a node yields."""
    return tuple(node.meta["val"].shape)


def dtype_of(node: fx.Node) -> torch.dtype:
    """Dtype of the tensor that a node yields."""
    return node.meta["val"].dtype


def is_call(node: Any, *targets: Any) -> bool:
    """Whether `node` is a call of one of the ATen overloads."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_constant(node: Any) -> bool:
    """Whether `node` reads a parameter or buffer of the graph."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def constant_of(node: fx.Node) -> Tensor:
    """The tensor that a `get_attr` node reads."""
    owner: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        owner = getattr(owner, part)
    return owner


def argument(node: fx.Node, index: int, default: Any = None) -> Any:
    """A positional argument, or the default that the op's schema gives it."""
    if len(node.args) > index:
        return node.args[index]
    schema = node.target._schema.arguments[index]
    return node.kwargs.get(schema.name, schema.default_value if schema.has_default_value() else default)


def keywords(node: fx.Node) -> dict[str, Any]:
    """The keyword arguments of a call of an ATen overload that are not what its schema gives anyway.

    `dtype` is left out where it is the dtype of the first operand: the op computes in that in any case.
    """
    if node.op != "call_function" or not node.kwargs or not hasattr(node.target, "_schema"):
        return {}
    defaults = {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()}
    found = {
        name: value
        for name, value in node.kwargs.items()
        # No `==` on a value that may be a node, nor 1 for True.
        if name not in defaults or type(value) is not type(defaults[name]) or value != defaults[name]
    }
    first = node.args[0] if node.args else None
    if isinstance(first, fx.Node) and found.get("dtype") == getattr(first.meta.get("val"), "dtype", None):
        found.pop("dtype", None)
    return found


def module_of(node: fx.Node) -> str:
    """Path of the module that a node comes from, as in `up_blocks.1.resnets.0.conv1`."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def capture(model: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """Export `model` to a graph of ATen ops with fixed shapes; weights are attributes of the result.

    What the model computes of its weights alone is computed here, once, and the graph is brought to the form that
    rewrites and lowerings know (`normal.normalise`).

    Raises ExportError for a model that torch.export refuses, or that holds what an artefact cannot.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(model.eval(), inputs)
    except Exception as error:
        raise ExportError(
            f"torch.export does not take {type(model).__name__}: {str(error).strip().splitlines()[0]}"
        ) from error
    module = program.module(check_guards=False)
    normalise(module)
    fold_constants(module)
    return module


def fold_constants(module: fx.GraphModule) -> int:
    """Replace, in place, each op whose tensors are all weights by its result. Returns how many were replaced.

    Only ops that give no more values than they take: an artefact does not grow. A head that numbers its channels in
    another order, a scale that gains axes and a sum of weights become plain weights, which rewrites and delegates
    know as such.
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        if not all(is_constant(x) and isinstance(x.meta.get("val"), Tensor) for x in node.all_input_nodes):
            continue
        taken = sum(constant_of(x).numel() for x in node.all_input_nodes)
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.numel() > taken or node.target._schema.is_mutable:
            continue
        with module.graph.inserting_before(node):
            new = module.graph.get_attr(_store(module, _computed(node)))
        new.meta = {**node.meta, "val": torch.empty_like(value, device="meta")}
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
        count += 1
    if count:
        module.graph.eliminate_dead_code()
        module.recompile()
    return count


def _computed(node: fx.Node) -> Tensor:
    def tensor(x: Any) -> Any:
        return constant_of(x).detach()

    args, kwargs = fx.map_arg((node.args, node.kwargs), tensor)
    with torch.no_grad():
        return node.target(*args, **kwargs).contiguous().clone()


def _store(module: fx.GraphModule, value: Tensor) -> str:
    number = 0
    while hasattr(module, f"_folded_{number}"):
        number += 1
    module.register_buffer(f"_folded_{number}", value)
    return f"_folded_{number}"


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
        report += step.run(graph)
        module.graph.lint()
    _drop_unused_attributes(module)
    module.recompile()
    return report


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
