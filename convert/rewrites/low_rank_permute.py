"""Permutations of clips at the lowest rank that shows them.

    before   permute(x, order)                               x: as (1, C, T, H, W) to (1, T, H, W, C)
    after    reshape(x) -> transpose or permute -> reshape   axes of size 1 left out, axes that stay together joined

As here: (C, T*H*W) transposed.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from ..graph.rewrite import Case, Graph, Rewrite, is_call, shape_of
from .cases import of
from .frames import aten


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    found = is_call(node, aten.permute.default, aten.movedim.int) and len(shape_of(node)) > 4
    return (node,) if found else None


def _order(node: fx.Node) -> list[int]:
    """For each axis of the result, the axis of the operand that it is."""
    rank = len(shape_of(node))
    if is_call(node, aten.permute.default):
        return [axis % rank for axis in node.args[1]]
    source, destination = (axis % rank for axis in node.args[1:3])
    order = [axis for axis in range(rank) if axis != source]
    order.insert(destination, source)
    return order


def _spans(node: fx.Node) -> list[list[int]]:
    """Axes of the operand that stay together, in the order of the result."""
    shape = shape_of(node.args[0])
    left = [axis for axis in range(len(shape)) if shape[axis] > 1]
    spans: list[list[int]] = []
    for axis in _order(node):
        if shape[axis] == 1:
            continue
        if spans and left.index(axis) == left.index(spans[-1][-1]) + 1:
            spans[-1].append(axis)
        else:
            spans.append([axis])
    return spans


def _check(match: tuple[fx.Node, ...]) -> str | None:
    spans = _spans(match[0])
    return None if len(spans) <= 4 else f"{len(spans)} spans of axes change places: four at most"


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    x = node.args[0]
    shape = shape_of(x)
    spans = _spans(node)
    before = sorted(spans)
    order = [before.index(span) for span in spans]
    if len(order) > 1:
        x = graph.call(aten.reshape.default, x, [math.prod(shape[axis] for axis in span) for span in before])
        if len(order) == 2:
            x = graph.call(aten.transpose.int, x, 0, 1)
        else:
            x = graph.call(aten.permute.default, x, order)
    return graph.call(aten.reshape.default, x, list(shape_of(node)))


REWRITE = Rewrite(
    name="low_rank_permute",
    why="Delegates permute rank 4 at most, and fewer axes are longer rows: a faster copy everywhere.",
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("channels last", of(lambda x: x.permute(0, 2, 3, 4, 1)), (1, 4, 3, 2, 5)),
        Case("channels moved back", of(lambda x: x.movedim(-1, 1)), (1, 3, 2, 5, 4)),
        Case("batch of two", of(lambda x: x.permute(0, 3, 4, 1, 2)), (2, 4, 3, 2, 5)),
        Case("nothing moves", of(lambda x: x.permute(1, 0, 2, 3, 4)), (1, 4, 3, 2, 5)),
    ),
    near_misses=(
        Case("all axes", of(lambda x: x.permute(4, 3, 2, 1, 0)), (2, 4, 3, 2, 5), 0, "5 spans"),
        Case("rank 4", of(lambda x: x.permute(0, 2, 3, 1)), (2, 4, 3, 5), 0),
        Case("a transpose", of(lambda x: torch.transpose(x, 1, 2)), (1, 4, 3, 2, 5), 0),
    ),
)
