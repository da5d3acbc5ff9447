"""Memory that the activations of a graph need, without running it.

The model follows the runtimes, not eager torch:

- Nodes run in the graph's order. A tensor is live from the node that writes it to the last node that reads it.
- Every op writes a new contiguous tensor, even a slice or a transpose. Exceptions are ops that only relabel
  contiguous memory: a reshape, a transpose that keeps the order of all axes larger than 1, a slice of everything.
- The caller owns the inputs, so that they are live throughout.
- Weights do not count, nor does the workspace inside an op.

A runtime may need less (it computes elementwise ops in place) or more (its arena has gaps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import fx

from .cost import size_bytes
from .nodes import is_call, module_of
from .ops import PERMUTATIONS, relabels


@dataclass(frozen=True)
class Lifetime:
    """What one node writes, in most cases one tensor, and how long it is needed.

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
    """The most bytes that are live at once, and where: a node, its op, and the module that it comes from."""

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
        inputs_stay: whether inputs are live throughout. If False, an input ends with the last node that reads it.
        free_layouts: whether every transpose counts as relabelling. For graphs between two rewrites:
            `cancel_layouts` will remove most transposes.
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
        same_memory = relabels(node) or (free_layouts and is_call(node, *PERMUTATIONS))
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
