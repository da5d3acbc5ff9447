"""Channel norms by a root of squares, in a form that neither overflows nor underflows in fp16.

    before   x * rsqrt(mean(x^2, 1) + eps)          (RMSNorm)
             x / clamp(norm(x, 2, 1), min)          (F.normalize)
    after    m = sqrt(C) * (mean(|x|, 1) + sqrt(eps))
             z = x / m;   z * rsqrt(mean(z^2, 1) + (sqrt(eps) / m)^2)                of the RMSNorm
             z * rsqrt(max(sum(z^2, 1), (min / m)^2))                                of the other, eps = min^2

Exact in real arithmetic: dividing by any positive m changes nothing. This m keeps |z| at or below sqrt(C) and
mean(z^2) between 1/C and 1 for any x well over sqrt(eps); where x is all zeros the last term is 1/C.

The square is x^2, x * x or square(x), its mean may be a sum (then of C times the mean), the root is rsqrt, sqrt or
a power of 0.5 or -0.5, and x is multiplied with its reciprocal, in either order, or divided by it. A root of the
mean or sum of squares in any other place is refused with a reason: it would overflow in fp16 without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx
from torch.nn import functional as F

from ..graph.rewrite import Case, Graph, Rewrite, argument, dtype_of, is_call, shape_of
from .cases import of
from .frames import aten

_REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList)
_SPREAD = (aten.expand_as.default, aten.expand.default)


@dataclass(frozen=True)
class _Norm:
    """What a root of squares is made of.

    Attributes:
        x: what is squared.
        reduced: the mean, the sum or the norm, and with it the axes.
        summed: whether the squares are summed rather than averaged.
        eps: added to the mean or sum before the root; None where it is no number.
        least: the smallest that the root may be, as in F.normalize; 0 where there is no such limit.
        nodes: of the pattern, from the root on.
    """

    x: fx.Node
    reduced: fx.Node
    summed: bool
    eps: float | None
    least: float
    nodes: tuple[fx.Node, ...]


def _squared(node: object) -> fx.Node | None:
    """What `node` is the square of."""
    if is_call(node, aten.square.default) or (is_call(node, aten.pow.Tensor_Scalar) and node.args[1] == 2):
        return node.args[0]
    if is_call(node, aten.mul.Tensor) and node.args[0] is node.args[1]:
        return node.args[0]
    return None


def _is_safe(x: fx.Node) -> bool:
    """Whether x was divided by its own size: what this rewrite makes."""
    if not is_call(x, aten.div.Tensor) or not is_call(x.args[1], aten.mul.Tensor):
        return False
    size = x.args[1].args[0]
    mean = size.args[0] if is_call(size, aten.add.Tensor) else None
    return is_call(mean, aten.mean.dim) and is_call(mean.args[0], aten.abs.default)


def _inverted(node: object) -> tuple[fx.Node, bool, tuple[fx.Node, ...]] | None:
    """Of a root: what it is taken of, whether it is the reciprocal, and its nodes."""
    if is_call(node, aten.rsqrt.default):
        return node.args[0], True, (node,)
    if is_call(node, aten.pow.Tensor_Scalar) and abs(node.args[1]) == 0.5:
        return node.args[0], node.args[1] < 0, (node,)
    if is_call(node, aten.sqrt.default):
        return node.args[0], False, (node,)
    if is_call(node, aten.reciprocal.default) and (inner := _inverted(node.args[0])) and not inner[1]:
        return inner[0], True, (node, *inner[2])
    if is_call(node, aten.mul.Tensor) and node.args[1] == 1 and (inner := _inverted(node.args[0])):
        return inner[0], inner[1], (node, *inner[2])  # torch.export writes 1 / y as reciprocal(y) * 1
    return None


def _norm(node: object) -> tuple[_Norm, bool] | None:
    """The norm that a node is the root of, and whether it is its reciprocal."""
    spread: tuple[fx.Node, ...] = ()
    while is_call(node, *_SPREAD):
        spread, node = (*spread, node), node.args[0]
    least = 0.0
    if is_call(node, aten.clamp_min.default, aten.clamp.default) and is_call(
        node.args[0], aten.linalg_vector_norm.default
    ):
        least = argument(node, 1) or 0.0
        spread, node = (*spread, node), node.args[0]
    if is_call(node, aten.linalg_vector_norm.default):
        order = argument(node, 1)
        return (_Norm(node.args[0], node, True, 0.0, least, (*spread, node)), False) if order == 2 else None
    root = _inverted(node)
    if root is None:
        return None
    inside, reciprocal, nodes = root
    eps: float | None = 0.0
    while is_call(inside, aten.add.Tensor, aten.clamp_min.default):
        for a, b in ((inside.args[0], inside.args[1]), (inside.args[1], inside.args[0])):
            if is_call(a, *_REDUCTIONS):
                number = isinstance(b, int | float) and is_call(inside, aten.add.Tensor)
                eps, nodes, inside = (b if number else None), (*nodes, inside), a
                break
        else:
            return None
    if not is_call(inside, *_REDUCTIONS) or (x := _squared(inside.args[0])) is None or _is_safe(x):
        return None
    found = (*spread, *nodes, inside, inside.args[0])
    return _Norm(x, inside, is_call(inside, aten.sum.dim_IntList), eps, 0.0, found), reciprocal


def _scaled(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What a node may scale, and by the reciprocal of what root."""
    if not is_call(node, aten.mul.Tensor, aten.div.Tensor):
        return
    a, b = node.args[:2]
    pairs = [(a, b)] if is_call(node, aten.div.Tensor) else [(a, b), (b, a)]
    for x, root in pairs:
        found = _norm(root)
        if found and found[1] == is_call(node, aten.mul.Tensor) and found[0].x is x:
            yield x, root


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    for _, root in _scaled(node):
        found = _norm(root)
        assert found is not None
        return (node, *found[0].nodes)
    # A root of squares that none of its users divides its own operand by.
    found = _norm(node) if node.op == "call_function" and not is_call(node, *_SPREAD) else None
    if found and not any(_leads_to_norm(user, node) for user in node.users):
        return (node, *found[0].nodes)
    return None


def _leads_to_norm(user: fx.Node, root: fx.Node) -> bool:
    """Whether a user of a root, or what passes the root on, is where the whole norm ends, or its root goes on."""
    if any(True for _ in _scaled(user)):
        return True
    passes_on = _norm(user) is not None or is_call(user, *_SPREAD)
    return passes_on and any(_leads_to_norm(after, user) for after in user.users)


def _of(match: tuple[fx.Node, ...]) -> _Norm | None:
    for _, root in _scaled(match[0]):
        found = _norm(root)
        return found[0] if found else None
    return None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    norm = _of(match)
    if norm is None:
        return (
            "a root of a mean or sum of squares that does not divide what was squared: no norm that is known, and "
            "in fp16 the squares overflow from |x| = 256 on"
        )
    axes = argument(norm.reduced, 2 if is_call(norm.reduced, aten.linalg_vector_norm.default) else 1)
    keepdim = argument(norm.reduced, 3 if is_call(norm.reduced, aten.linalg_vector_norm.default) else 2)
    axes = [axes] if isinstance(axes, int) else axes
    rank = len(shape_of(norm.x))
    if not axes or [axis % rank for axis in axes] != [1] or not keepdim:
        return f"normalises over axes {axes}, not over channels with keepdim"
    if norm.eps is None:
        return "what is added to the squares is computed, not a number"
    if norm.eps <= 0 and norm.least <= 0:
        return f"epsilon {norm.eps:g} is not a positive number"
    return None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    norm = _of(match)
    assert norm is not None
    assert norm.eps is not None
    x, channels = norm.x, shape_of(norm.x)[1]
    # Of the mean of squares; a sum of squares is C times the mean.
    floor_eps = norm.least**2 if norm.least else norm.eps
    eps = floor_eps / channels if norm.summed else floor_eps

    def number(value: float) -> fx.Node:
        # A tensor of the clip's dtype: executorch would cast a bare number at run time, outside the delegate.
        return graph.constant(torch.full((1,) * len(shape_of(x)), value, dtype=dtype_of(x)))

    root_eps = number(math.sqrt(eps))
    size = graph.call(aten.mean.dim, graph.call(aten.abs.default, x), [1], True)
    size = graph.call(aten.add.Tensor, size, root_eps)
    size = graph.call(aten.mul.Tensor, size, number(math.sqrt(channels)))
    z = graph.call(aten.div.Tensor, x, size)
    mean = graph.call(aten.mean.dim, graph.call(aten.mul.Tensor, z, z), [1], True)
    floor = graph.call(aten.div.Tensor, root_eps, size)
    square = graph.call(aten.mul.Tensor, floor, floor)
    if norm.least:
        total = graph.call(aten.maximum.default, mean, square)
    else:
        total = graph.call(aten.add.Tensor, mean, square)
    result = graph.call(aten.mul.Tensor, z, graph.call(aten.rsqrt.default, total))
    return graph.call(aten.mul.Tensor, result, number(1 / math.sqrt(channels))) if norm.summed else result


def _rms(eps: float = 1e-8, axis: int = 1):
    return of(lambda x: x * (x.pow(2).mean(axis, keepdim=True) + eps).rsqrt())


_CLIP = (1, 8, 3, 4, 5)

REWRITE = Rewrite(
    name="safe_rms_norm",
    why="In fp16, x^2 overflows from |x| = 256 on, and the released epsilon of 1e-8 rounds to zero.",
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("clip", _rms(), _CLIP),
        Case("frames", _rms(1e-6), (3, 8, 4, 5)),
        Case("x * x", of(lambda x: x * ((x * x).mean(1, True) + 1e-6).rsqrt()), _CLIP),
        Case("square", of(lambda x: x * (x.square().mean(1, True) + 1e-6).rsqrt()), _CLIP),
        Case("the root first", of(lambda x: (1e-6 + x.pow(2).mean(1, True)).rsqrt() * x), _CLIP),
        Case("divided by the root", of(lambda x: x / (x.pow(2).mean(1, True) + 1e-6).sqrt()), _CLIP),
        Case("times one over the root", of(lambda x: x * (1 / ((x * x).mean(1, True) + 1e-6).sqrt())), _CLIP),
        Case("a power", of(lambda x: x * (x.pow(2).mean(1, True) + 1e-6) ** -0.5), _CLIP),
        Case("the sum of squares", of(lambda x: x / (x.square().sum(1, True) + 1e-4).sqrt()), _CLIP),
        Case("normalize", of(lambda x: F.normalize(x, dim=1)), _CLIP),
        Case("normalize, of frames", of(lambda x: F.normalize(x, dim=1, eps=1e-2) * 8**0.5), (3, 8, 4, 5)),
        Case("normalize, all below its limit", of(lambda x: F.normalize(x / 1e3, dim=1, eps=1.0) * 1e2), _CLIP),
    ),
    near_misses=(
        Case("over time", _rms(axis=2), _CLIP, 0, "normalises over axes [2]"),
        Case("no epsilon", _rms(0), _CLIP, 0, "epsilon 0"),
        Case(
            "of another tensor",
            of(lambda x: x.relu() * (x.pow(2).mean(1, True) + 1e-8).rsqrt()),
            _CLIP,
            0,
            "no norm",
        ),
        Case(
            "by the norm, not its reciprocal",
            of(lambda x: x * (x.pow(2).mean(1, True) + 1).sqrt()),
            _CLIP,
            0,
            "no norm",
        ),
        Case("a norm without a limit", of(lambda x: x / x.norm(dim=1, keepdim=True)), _CLIP, 0, "epsilon 0"),
        Case("of absolute values", of(lambda x: F.normalize(x, p=1.0, dim=1)), _CLIP, 0),
        Case("over width", of(lambda x: F.normalize(x, dim=-1)), _CLIP, 0, "normalises over axes [-1]"),
        Case("a root of something else", of(lambda x: x * (x.abs().mean(1, True) + 1e-6).rsqrt()), _CLIP, 0),
    ),
)
