"""Attention under a causal mask, as one attention without a mask for each span of queries that see the same keys.

    before   scaled_dot_product_attention(q, k, v, mask)     mask (.., L, S): row i is 0 up to key n_i, then -inf
    after    cat([attention(q[a:b], k[:n], v[:n]) for each span a:b of rows with the same n], -2)

Masked keys weigh exactly zero, so leaving them out computes the same. In HunyuanVideo's decoder every place of a
frame sees its own frame and those before: one span per frame.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..graph.rewrite import Case, Graph, Rewrite, argument, constant_of, is_call, is_constant, shape_of
from .cases import of
from .frames import aten

# More spans than this would be a graph of thousands of small products.
_MOST_SPANS = 64


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    found = is_call(node, aten.scaled_dot_product_attention.default)
    return (node,) if found and (argument(node, 3) is not None or argument(node, 5)) else None


def _computed(node: fx.Node) -> Any:
    """What a node yields that depends on no input of the graph; None where it depends on one."""
    if is_constant(node):
        return constant_of(node).detach()
    if node.op != "call_function":
        return None
    values = {x: _computed(x) for x in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _spans(node: fx.Node) -> list[tuple[int, int, int]] | str:
    """First and last query and number of keys, of each span; or why there are none."""
    queries, keys = shape_of(node.args[0])[-2], shape_of(node.args[1])[-2]
    if argument(node, 5):
        mask: Any = torch.ones(queries, keys, dtype=torch.bool).tril()
    else:
        mask = _computed(argument(node, 3))
    if mask is None:
        return "the mask is computed from the latents"
    mask = mask.reshape(-1, *mask.shape[-2:])
    if not (mask == mask[:1]).all():
        return "masks differ in the batch"
    rows: Tensor = mask[0] if mask.dtype == torch.bool else mask[0] == 0
    rows = rows.expand(queries, keys)
    if mask.dtype != torch.bool and not (rows | (mask[0] == -torch.inf)).all():
        return "the mask adds other numbers than 0 and -inf"
    seen = rows.sum(-1)
    if not (rows == (torch.arange(keys) < seen[:, None])).all() or not seen.all():
        return "a query does not see the first keys and no others"
    lengths, counts = torch.unique_consecutive(seen, return_counts=True)
    if len(lengths) > _MOST_SPANS:
        return f"{len(lengths)} spans of queries see as many numbers of keys; at most {_MOST_SPANS}"
    ends = counts.cumsum(0).tolist()
    return [(end - count, end, n) for end, count, n in zip(ends, counts.tolist(), lengths.tolist())]


def _check(match: tuple[fx.Node, ...]) -> str | None:
    spans = _spans(match[0])
    if isinstance(spans, str):
        return spans
    if argument(match[0], 4):
        return "dropout"
    return "queries share keys between heads" if argument(match[0], 7) else None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    query, key, value = node.args[:3]
    spans = _spans(node)
    assert not isinstance(spans, str)

    def part(x: fx.Node, start: int, end: int) -> fx.Node:
        if (start, end) == (0, shape_of(x)[-2]):
            return x
        return graph.call(aten.slice.Tensor, x, len(shape_of(x)) - 2, start, end)

    parts = [
        graph.call(
            aten.scaled_dot_product_attention.default,
            *(part(query, start, end), part(key, 0, keys), part(value, 0, keys)),
            scale=argument(node, 6),
        )
        for start, end, keys in spans
    ]
    return parts[0] if len(parts) == 1 else graph.call(aten.cat.default, parts, len(shape_of(node)) - 2)


def _attend(frames: int = 3, places: int = 4, **options):
    def attend(x: Tensor) -> Tensor:
        number = torch.arange(frames).repeat_interleave(places)
        mask = torch.where(number[None] <= number[:, None], 0, -torch.inf).to(x.dtype)
        return F.scaled_dot_product_attention(x, x.sin(), x.cos(), attn_mask=mask, **options)

    return of(attend)


def _masked(mask: Tensor):
    return of(lambda x: F.scaled_dot_product_attention(x, x.sin(), x.cos(), attn_mask=mask))


REWRITE = Rewrite(
    name="causal_attention",
    why=(
        "A mask of (T*H*W)^2 values is larger than the decoder for a clip of usual size, half of the products that "
        "it keeps out are computed all the same, and delegates do not take the ops that make it."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("three frames", _attend(), (1, 1, 12, 8)),
        Case("heads, scale given", _attend(2, 3, scale=0.3), (2, 4, 6, 8)),
        Case("nothing masked", _masked(torch.ones(5, 5, dtype=torch.bool)), (1, 2, 5, 8)),
        Case(
            "each place by itself",
            of(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
            (1, 2, 5, 8),
        ),
    ),
    keeps_keywords=True,
    near_misses=(
        Case("window", _masked(torch.ones(5, 5).tril().triu(-1) > 0), (1, 2, 5, 8), 0, "no others"),
        Case("bias", _masked(torch.linspace(0, 1, 25).reshape(5, 5)), (1, 2, 5, 8), 0, "other numbers"),
        Case("no mask", of(lambda x: F.scaled_dot_product_attention(x, x, x)), (1, 2, 5, 8), 0),
    ),
)
