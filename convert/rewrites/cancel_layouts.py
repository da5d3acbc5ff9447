"""Removes reshapes and transposes that undo one another.

reshape(reshape(x, a), b)         ->  reshape(x, b)
reshape(x, x.shape)               ->  x
transpose(transpose(x, i, j), i, j)  ->  x
transpose(x, i, j) where one of the two axes has size 1 and they are neighbours  ->  reshape(x, ...)
slice(x, axis, 0, all), alias(x)            ->  x
"""

from __future__ import annotations

from torch import fx

from ..graph.ops import RESHAPES
from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, shape_of
from .cases import of
from .frames import aten


def _swap(node: fx.Node) -> set[int]:
    return {axis % len(shape_of(node)) for axis in node.args[1:3]}


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if is_call(node, *RESHAPES):
        if shape_of(node) == shape_of(node.args[0]) or is_call(node.args[0], *RESHAPES):
            return (node,)
    elif is_call(node, aten.transpose.int):
        inner = node.args[0]
        if is_call(inner, aten.transpose.int) and _swap(inner) == _swap(node):
            return (node,)
        swapped = sorted(_swap(node))
        if len(swapped) == 2 and swapped[1] - swapped[0] == 1 and 1 in (shape_of(node)[i] for i in swapped):
            return (node,)
    elif is_call(node, aten.slice.Tensor, aten.alias.default) and shape_of(node) == shape_of(node.args[0]):
        return (node,)
    return None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    (node,) = match
    step = argument(node, 4, 1) if is_call(node, aten.slice.Tensor) else 1
    return None if step == 1 else f"slice with step {step}"


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    x = node.args[0]
    if shape_of(x) == shape_of(node) and not is_call(node, aten.transpose.int):
        return x
    if is_call(node, *RESHAPES):
        return graph.call(aten.reshape.default, x.args[0], list(shape_of(node)))
    if is_call(x, aten.transpose.int) and _swap(x) == _swap(node):
        return x.args[0]
    return graph.call(aten.reshape.default, x, list(shape_of(node)))


REWRITE = Rewrite(
    name="cancel_layouts",
    why="A transpose of a clip is a copy of the whole tensor, and the other rewrites leave them in pairs.",
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("there and back", of(lambda x: x.transpose(1, 2).transpose(2, 1).relu()), (1, 4, 3, 2, 5)),
        Case("two reshapes", of(lambda x: x.reshape(12, 10).reshape(3, 40)), (1, 4, 3, 2, 5)),
        Case("reshape to itself", of(lambda x: x.reshape(1, 4, 3, 2, 5) + 1), (1, 4, 3, 2, 5)),
        Case(
            "a slice of everything, which is exported as an alias", of(lambda x: x[:, :, 0:] + 1), (1, 4, 3, 2, 5)
        ),
        Case("one frame", of(lambda x: x.transpose(1, 2) + 1), (1, 4, 1, 2, 5)),
    ),
    near_misses=(
        Case("other axes", of(lambda x: x.transpose(1, 2).transpose(1, 3)), (1, 4, 3, 2, 5), 0),
        Case("a real slice", of(lambda x: x[:, :, 1:]), (1, 4, 3, 2, 5), 0),
    ),
)
