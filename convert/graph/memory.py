"""Memory that the activations of a graph need, without running it.

The model, which is that of the runtimes rather than of eager torch:

- Nodes run in the graph's order. A tensor is there from the node that writes it until the last node that reads it.
- Every op writes a new contiguous tensor, slices and transposes too. Only what relabels contiguous memory writes
  none: reshapes, a transpose that leaves the order of the axes over size 1 alone, a slice of everything.
- The caller owns the inputs: they are there throughout. Weights, and the scratch memory inside an op, do not count.

A runtime that plans better (elementwise ops in place) or worse (an arena with gaps) differs from it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, fx

from .rewrite import is_call, module_of, shape_of

aten = torch.ops.aten

_RESHAPES = (
    aten.alias.default,
    aten.contiguous.default,  # what it is given is contiguous already
    aten.detach.default,
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.view.default,
)
_PERMUTATIONS = (aten.transpose.int, aten.permute.default, aten.movedim.int)
_NO_OPS_AT_EQUAL_SHAPE = (aten.slice.Tensor, aten.expand.default)


@dataclass(frozen=True)
class Lifetime:
    """A tensor in memory, or all that one node writes.

    Attributes:
        node: that writes it.
        size_bytes: of all that the node writes.
        first, last: places in the graph's order, both included, between which it is needed.
        outer: whether it is an input or output of the graph, in memory that a caller may own.
    """

    node: fx.Node
    size_bytes: int
    first: int
    last: int
    outer: bool = False


@dataclass(frozen=True)
class Peak:
    """Where the most bytes are live at once: node, its op, and the module it comes from."""

    size_bytes: int
    node: str
    op: str
    module: str


def lifetimes(
    module: fx.GraphModule,
    dtype: torch.dtype = torch.float32,
    *,
    inputs_stay: bool = True,
    free_layouts: bool = False,
) -> list[Lifetime]:
    """Every activation of a graph with its size and the time for which it is needed, in the graph's order.

    Args:
        dtype: in which the artefact holds what the graph has in fp32.
        inputs_stay: False: the inputs are the graph's own, and go after the last node that reads them.
        free_layouts: every transpose relabels, for half rewritten graphs: `cancel_layouts` removes them later.
    """
    nodes = list(module.graph.nodes)
    written: dict[fx.Node, fx.Node] = {}  # node -> the node that wrote its memory
    first: dict[fx.Node, int] = {}
    last: dict[fx.Node, int] = {}
    for place, node in enumerate(nodes):
        for source in node.all_input_nodes:
            if source in written:
                last[written[source]] = place
        if node.op in ("get_attr", "output"):
            continue
        same_memory = relabels(node) or (free_layouts and is_call(node, *_PERMUTATIONS))
        owner = written.get(node.args[0]) if same_memory else None
        written[node] = owner or node
        if owner is None:
            first[node] = last[node] = place
    if inputs_stay:
        for node in first:
            if node.op == "placeholder":
                first[node], last[node] = 0, len(nodes) - 1
    given = {written[node] for node in nodes[-1].all_input_nodes if node in written}
    return [
        Lifetime(node, size_bytes(node, dtype), place, last[node], node.op == "placeholder" or node in given)
        for node, place in first.items()
    ]


def live_bytes(module: fx.GraphModule, tensors: Iterable[Lifetime]) -> dict[fx.Node, int]:
    """Bytes of `tensors` that are live while each node of their graph runs, in the graph's order."""
    change = [0] * (len(module.graph.nodes) + 1)
    for tensor in tensors:
        change[tensor.first] += tensor.size_bytes
        change[tensor.last + 1] -= tensor.size_bytes
    return dict(zip(module.graph.nodes, accumulate(change)))


def peak_memory(
    module: fx.GraphModule,
    dtype: torch.dtype = torch.float32,
    *,
    counted: Callable[[Lifetime], bool] = lambda tensor: True,
) -> Peak:
    """The most bytes of activations that are live at once, and the first node at which they are.

    Args:
        counted: which tensors count.
    """
    live = live_bytes(module, filter(counted, lifetimes(module, dtype)))
    at = max(live, key=live.__getitem__)
    return Peak(live[at], at.name, str(at.target), module_of(at))


def moved_bytes(module: fx.GraphModule, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of activations that the ops of a graph read and write, each operand once per op."""
    total = 0
    for node in module.graph.nodes:
        if node.op == "call_function" and not relabels(node):
            read = [n for n in node.all_input_nodes if n.op != "get_attr"]
            total += sum(size_bytes(n, dtype) for n in (*read, node))
    return total


def weight_bytes(module: fx.GraphModule, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the parameters and constants that a graph reads, each once."""
    # Tensors on the meta device have no address.
    held = {t.data_ptr() or id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(_bytes(tensor, dtype) for tensor in held.values())


def size_bytes(node: fx.Node, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of what a node yields."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return sum(_bytes(t, dtype) for t in values if isinstance(t, Tensor))


def _bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    return tensor.numel() * (dtype if tensor.dtype == torch.float32 else tensor.dtype).itemsize


def relabels(node: fx.Node) -> bool:
    """Whether a node yields the memory that it is given, under other axes."""
    if is_call(node, *_RESHAPES) or node.target is operator.getitem:
        return True
    if is_call(node, *_PERMUTATIONS):
        return _keeps_order(node)
    return is_call(node, *_NO_OPS_AT_EQUAL_SHAPE) and shape_of(node) == shape_of(node.args[0])  # type: ignore[arg-type]


def _keeps_order(node: fx.Node) -> bool:
    """Whether the axes over size 1 stand in the same order after a permutation as before."""
    before = shape_of(node.args[0])  # type: ignore[arg-type]
    # On a meta tensor of that shape torch computes strides, which then still are those of contiguous memory.
    moved = node.target(torch.empty(before, device="meta"), *node.args[1:])  # type: ignore[operator]
    return moved.is_contiguous()
