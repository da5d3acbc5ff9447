"""Channel RMSNorm in a form that neither overflows nor underflows in fp16, exact in real arithmetic.

    before   x * rsqrt(mean(x^2, 1) + eps)
    after    m = sqrt(C) * (mean(|x|, 1) + sqrt(eps))
             z = x / m;   z * rsqrt(mean(z^2, 1) + (sqrt(eps) / m)^2)

Dividing by any positive m changes nothing in real arithmetic. This m keeps |z| at or below sqrt(C) and
mean(z^2) between 1/C and 1 for any x well over sqrt(eps); where x is all zeros the last term is 1/C.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from ..graph.rewrite import Case, Graph, Rewrite, dtype_of, is_call, shape_of
from .cases import of
from .frames import aten


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not is_call(node, aten.mul.Tensor):
        return None
    x, scale = node.args[:2]
    if not is_call(scale, aten.rsqrt.default) or not is_call(scale.args[0], aten.add.Tensor):
        return None
    add = scale.args[0]
    mean = add.args[0]
    if not is_call(mean, aten.mean.dim) or not is_call(mean.args[0], aten.pow.Tensor_Scalar):
        return None
    square = mean.args[0]
    return (node, scale, add, mean, square) if square.args[:2] == (x, 2) else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    _, _, add, mean, _ = match
    if list(mean.args[1]) != [1] or len(mean.args) < 3 or not mean.args[2]:
        return f"normalises over axes {mean.args[1]}, not over channels with keepdim"
    eps = add.args[1]
    if not isinstance(eps, int | float) or eps <= 0:
        return f"epsilon {eps} is not a positive number"
    return None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    node, _, add, _, _ = match
    x, eps = node.args[0], add.args[1]

    def number(value: float) -> fx.Node:
        # A tensor of the clip's dtype: executorch would cast a bare number at run time, outside the delegate.
        return graph.constant(torch.full((1,) * len(shape_of(x)), value, dtype=dtype_of(x)))

    root_eps = number(math.sqrt(eps))
    size = graph.call(aten.mean.dim, graph.call(aten.abs.default, x), [1], True)
    size = graph.call(aten.add.Tensor, size, root_eps)
    size = graph.call(aten.mul.Tensor, size, number(math.sqrt(shape_of(x)[1])))
    z = graph.call(aten.div.Tensor, x, size)
    mean = graph.call(aten.mean.dim, graph.call(aten.mul.Tensor, z, z), [1], True)
    floor = graph.call(aten.div.Tensor, root_eps, size)
    total = graph.call(aten.add.Tensor, mean, graph.call(aten.mul.Tensor, floor, floor))
    return graph.call(aten.mul.Tensor, z, graph.call(aten.rsqrt.default, total))


def _norm(eps: float = 1e-8, axis: int = 1):
    return of(lambda x: x * (x.pow(2).mean(axis, keepdim=True) + eps).rsqrt())


REWRITE = Rewrite(
    name="safe_rms_norm",
    why="In fp16, x^2 overflows from |x| = 256 on, and the released epsilon of 1e-8 rounds to zero.",
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("clip", _norm(), (1, 8, 3, 4, 5)),
        Case("frames", _norm(1e-6), (3, 8, 4, 5)),
    ),
    near_misses=(
        Case("over time", _norm(axis=2), (1, 8, 3, 4, 5), 0, "normalises over axes [2]"),
        Case("no epsilon", _norm(0), (1, 8, 3, 4, 5), 0, "epsilon 0"),
        Case(
            "of another tensor",
            of(lambda x: x.relu() * (x.pow(2).mean(1, True) + 1e-8).rsqrt()),
            (1, 8, 3, 4, 5),
            0,
        ),
    ),
)
