"""A tiny addend as a tensor instead of a number.

before   x + 1e-8
after    x + constant (1, ..., 1), of the rank of x
"""

from __future__ import annotations

import torch
from torch import fx

from ..graph.rewrite import Case, Graph, Rewrite, argument, dtype_of, is_call, shape_of
from .cases import of
from .frames import aten

# What the exporter's optimiser takes for zero: it compares numbers with this absolute tolerance.
_TAKEN_FOR_ZERO = 1e-8


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    tiny = (
        is_call(node, aten.add.Tensor)
        and isinstance(node.args[1], float)
        and 0 < abs(node.args[1]) <= _TAKEN_FOR_ZERO
        and argument(node, 2, 1) == 1
    )
    return (node,) if tiny else None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    x, number = node.args
    epsilon = torch.full([1] * len(shape_of(x)), number, dtype=dtype_of(x))
    return graph.call(aten.add.Tensor, x, graph.constant(epsilon))


REWRITE = Rewrite(
    name="keep_epsilon",
    why=(
        "torch.onnx's optimiser drops the addition of a number of at most 1e-8: the norm of a pixel that is zero "
        "in all channels, as in the empty state of a stream, becomes 0/0."
    ),
    match=_match,
    check=lambda match: None,
    replace=_replace,
    cases=(
        Case("root mean square", of(lambda x: (x.pow(2).mean(1, True) + 1e-8).rsqrt()), (2, 4, 3, 5)),
        Case("of zeros", of(lambda x: x * 0 * ((x * 0).pow(2).mean(1, True) + 1e-8).rsqrt()), (1, 4, 3, 5)),
    ),
    near_misses=(
        Case("a larger number", of(lambda x: x + 1e-6), (1, 4, 3, 5), 0),
        Case("a tensor", of(lambda x: x + x), (1, 4, 3, 5), 0),
    ),
)
