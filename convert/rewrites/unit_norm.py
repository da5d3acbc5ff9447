"""Vectors of channels divided by their length, as `F.normalize` does.

    before   x / expand(clamp_min(vector_norm(x, 2, 1), eps))
    `PLAIN`  x * rsqrt(clamp(mean(x * x, 1), eps^2 / C)) * C^-0.5
    `SAFE`   m = sqrt(C) * (mean(|x|, 1) + 1e-4);  z = x / m
             z * rsqrt(clamp(mean(z * z, 1), 1e-6)) * C^-0.5

Dividing by any positive m changes nothing in real arithmetic. `SAFE` is for vectors as fp16 can hold them: where
all values of one are well under 1e-7, one step of fp16's smallest numbers, it gives less than unit length.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import fx
from torch.nn import functional as F

from ..graph.rewrite import Case, Graph, Rewrite, argument, dtype_of, is_call, shape_of
from .cases import of
from .frames import aten


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not is_call(node, aten.div.Tensor):
        return None
    x, length = node.args[:2]
    # The length may have been spread over the channels by an op of its own.
    clamped = length.args[0] if is_call(length, aten.expand_as.default, aten.expand.default) else length
    if not is_call(clamped, aten.clamp_min.default):
        return None
    norm = clamped.args[0]
    found = is_call(norm, aten.linalg_vector_norm.default) and norm.args[0] is x
    return (node, clamped, norm) if found else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    node, clamped, norm = match
    x = node.args[0]
    axes = argument(norm, 2)
    if argument(norm, 1) != 2:
        return f"divides by the {argument(norm, 1)}-norm, not by the length"
    if axes is None or [axis % len(shape_of(x)) for axis in axes] != [1] or not argument(norm, 3):
        return f"normalises over axes {axes}, not over channels with keepdim"
    eps = argument(clamped, 1)
    if not isinstance(eps, int | float) or not 0 < eps <= 1e-4:
        return f"epsilon {eps}: a number above zero and at most 1e-4 is needed"
    return None


def _replacing(safe: bool):
    def replacement(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
        node, clamped, _ = match
        x = node.args[0]
        channels = shape_of(x)[1]
        call = graph.call

        def number(value: float) -> fx.Node:
            # A tensor of the clip's dtype: executorch would cast a bare number at run time, outside the delegate.
            return graph.constant(torch.full((1,) * len(shape_of(x)), value, dtype=dtype_of(x)))

        least = argument(clamped, 1) ** 2 / channels
        if safe:
            size = call(aten.mean.dim, call(aten.abs.default, x), [1], True)
            size = call(aten.mul.Tensor, call(aten.add.Tensor, size, number(1e-4)), number(math.sqrt(channels)))
            x = call(aten.div.Tensor, x, size)
            least = 1e-6
        mean = call(aten.mean.dim, call(aten.mul.Tensor, x, x), [1], True)
        scale = call(aten.rsqrt.default, call(aten.clamp.default, mean, least))
        scale = call(aten.mul.Tensor, scale, number(1 / math.sqrt(channels)))
        return call(aten.mul.Tensor, x, scale)

    return replacement


def _normalized(**options):
    return of(lambda x: F.normalize(x, **options))


PLAIN = Rewrite(
    name="unit_norm",
    why=(
        "XNNPACK and Vulkan have no vector norm: each of the norms of a Wan decoder would split the delegate. A "
        "mean over channels is one convolution, and takes no root of what is squared again."
    ),
    match=_match,
    check=_check,
    replace=_replacing(safe=False),
    cases=(
        Case("clip", _normalized(dim=1), (1, 8, 3, 4, 5)),
        Case("frames", _normalized(dim=-3, eps=1e-6), (3, 8, 4, 5)),
        Case("zeros", of(lambda x: F.normalize(x * 0, dim=1)), (3, 8, 4, 5)),
    ),
    near_misses=(
        Case("over width", _normalized(dim=-1), (3, 8, 4, 5), 0, "over axes"),
        Case("sum of magnitudes", _normalized(p=1.0), (3, 8, 4, 5), 0, "1.0-norm"),
        Case("large epsilon", _normalized(eps=0.1), (3, 8, 4, 5), 0, "epsilon 0.1"),
        Case(
            "another tensor's length",
            of(lambda x: x / x.relu().norm(dim=1, keepdim=True).clamp_min(1e-3)),
            (3, 8, 4, 5),
            0,
        ),
    ),
)

SAFE = replace(
    PLAIN,
    name="safe_unit_norm",
    why="In fp16, the sum of squares overflows, and 1e-12 rounds to zero: zeros would become NaN.",
    replace=_replacing(safe=True),
)
