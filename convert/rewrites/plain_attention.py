"""Scaled dot-product attention as two matrix products and a softmax.

    before   scaled_dot_product_attention(q, k, v)                 q: (N, heads, L, E), k: (.., S, E), v: (.., S, F)
    after    q, k, v reshaped to (N*heads, ...)
             bmm(softmax(bmm(q * scale, transpose(k)), -1), v)     scale: 1 / sqrt(E) unless given

The factor goes on q, before the products add up: in fp16 they stay as small as they can.
"""

from __future__ import annotations

import math

import torch
from torch import fx
from torch.nn import functional as F

from ..graph.rewrite import Case, Graph, Rewrite, argument, dtype_of, is_call, shape_of
from .cases import of
from .frames import aten


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    return (node,) if is_call(node, aten.scaled_dot_product_attention.default) else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    (node,) = match
    query, key, value = node.args[:3]
    if argument(node, 3) is not None or argument(node, 5):
        return "masked attention"
    if argument(node, 4):
        return "dropout"
    if len({shape_of(x)[:-2] for x in (query, key, value)}) > 1:
        return f"batches {[shape_of(x)[:-2] for x in (query, key, value)]} broadcast"
    return None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match

    def flat(x: fx.Node) -> fx.Node:
        shape = shape_of(x)
        return graph.call(aten.reshape.default, x, [math.prod(shape[:-2]), *shape[-2:]])

    query, key, value = map(flat, node.args[:3])
    scale = argument(node, 6)
    scale = 1 / math.sqrt(shape_of(query)[-1]) if scale is None else scale
    # A tensor of the clip's dtype: ExecuTorch would cast a bare number at run time, outside the delegate.
    factor = graph.constant(torch.full((1, 1, 1), scale, dtype=dtype_of(query)))
    query = graph.call(aten.mul.Tensor, query, factor)
    weights = graph.call(aten.bmm.default, query, graph.call(aten.transpose.int, key, 1, 2))
    result = graph.call(aten.bmm.default, graph.call(aten.softmax.int, weights, -1), value)
    return graph.call(aten.reshape.default, result, list(shape_of(node)))


def _attend(heads: int = 1, **options):
    def attend(x: torch.Tensor) -> torch.Tensor:
        n, places, _ = x.shape
        q, k, v = (part.reshape(n, places, heads, -1).transpose(1, 2) for part in (x, x.sin(), x.cos()))
        return F.scaled_dot_product_attention(q, k, v, **options)

    return of(attend)


REWRITE = Rewrite(
    name="plain_attention",
    why=(
        "ExecuTorch decomposes attention with a guard against rows that are masked whole (eq, any, where), which "
        "XNNPACK and Vulkan do not take: an unmasked row is never masked whole."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    keeps_keywords=True,
    cases=(
        Case("one head", _attend(), (3, 6, 8)),
        Case("four heads", _attend(4), (2, 5, 8)),
        Case("scale given", _attend(scale=0.5), (1, 6, 8)),
    ),
    near_misses=(
        Case("causal", _attend(is_causal=True), (2, 6, 8), 0, "masked attention"),
        Case("softmax alone", of(lambda x: x.softmax(-1)), (2, 6, 8), 0),
    ),
)
