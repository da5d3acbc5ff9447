"""A tensor that is concatenated with itself, as a convolution that copies channels.

    before   cat([x] * r, axis)                                            x: (.., n, ..), axis at n
    after    reshape (1, before, n*behind, 1) -> conv2d(ones (r*before, 1, 1, 1), groups before) -> reshape

Each of the `before` rows in front of the axis becomes r equal rows.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from ..graph.rewrite import Case, Graph, Rewrite, argument, dtype_of, is_call, shape_of
from .cases import of
from .frames import aten


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    found = is_call(node, aten.cat.default) and len(node.args[0]) > 1 and len(set(node.args[0])) == 1
    return (node,) if found else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    dtype = dtype_of(match[0])
    return None if dtype.is_floating_point else f"{dtype}: a convolution takes floating-point numbers"


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    x, times = node.args[0][0], len(node.args[0])
    shape = shape_of(x)
    axis = (argument(node, 1) or 0) % len(shape)
    rows = math.prod(shape[:axis])
    ones = graph.constant(torch.ones(rows * times, 1, 1, 1, dtype=dtype_of(x)))
    y = graph.call(aten.reshape.default, x, [1, rows, math.prod(shape[axis:]), 1])
    y = graph.call(aten.conv2d.default, y, ones, None, [1, 1], [0, 0], [1, 1], rows)
    return graph.call(aten.reshape.default, y, list(shape_of(node)))


REWRITE = Rewrite(
    name="cat_of_itself",
    why="XNNPACK's partitioner leaves a concatenation of one tensor with itself outside the delegate.",
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("frames", of(lambda x: torch.cat([x, x], 1)), (3, 4, 2, 5)),
        Case("three times, last axis", of(lambda x: torch.cat([x, x, x], -1)), (2, 3, 4)),
        Case("first axis", of(lambda x: torch.cat([x, x])), (3, 4, 2, 5)),
    ),
    near_misses=(
        Case("with another", of(lambda x: torch.cat([x, x, x + 1], 1)), (3, 4, 2, 5), 0),
        Case(
            "numbers", of(lambda x: torch.cat([(x > 0).int()] * 2, 1) + x.sum().int()), (3, 4), 0, "floating-point"
        ),
    ),
)
