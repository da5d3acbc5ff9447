"""Bare numbers in arithmetic, as constants of the clip's dtype.

before   x * 3, x + 0.5, x - 1, x / 3
after    the same with a tensor (1, ..., 1) in the number's place
"""

from __future__ import annotations

import torch
from torch import fx

from ..graph.rewrite import Case, Graph, Rewrite, argument, dtype_of, is_call, shape_of
from .cases import of
from .frames import aten

_ARITHMETIC = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not is_call(node, *_ARITHMETIC) or not isinstance(node.args[0], fx.Node):
        return None
    number = node.args[1]
    return (node,) if isinstance(number, int | float) and not isinstance(number, bool) else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    (node,) = match
    x = node.args[0]
    if not dtype_of(x).is_floating_point or dtype_of(x) != dtype_of(node):
        return f"{dtype_of(x)} becomes {dtype_of(node)}"
    return None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    x, number = node.args[:2]
    if is_call(node, aten.add.Tensor, aten.sub.Tensor):
        number = number * argument(node, 2, 1)
    constant = graph.constant(torch.full((1,) * len(shape_of(x)), float(number), dtype=dtype_of(x)))
    return graph.call(node.target, x, constant)


REWRITE = Rewrite(
    name="number_operands",
    why="ExecuTorch makes a tensor of a bare number and casts it at run time, outside the delegate.",
    match=_match,
    check=_check,
    replace=_replace,
    keeps_keywords=True,  # alpha, which the constant takes in
    cases=(
        Case("clamp of latents", of(lambda x: torch.tanh(x / 3) * 3), (1, 4, 5, 6), 2),
        Case("to another range", of(lambda x: x.mul(2).sub(1)), (1, 4, 5, 6), 2),
        Case("with a factor", of(lambda x: torch.add(x, 2, alpha=3)), (1, 4, 5, 6)),
    ),
    near_misses=(
        Case("two tensors", of(lambda x: x + x), (1, 4, 5, 6), 0),
        Case("other dtype", of(lambda x: (x.int() / 2).float()), (1, 4, 5, 6), 0, "becomes"),
    ),
)
