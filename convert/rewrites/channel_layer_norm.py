"""LayerNorm over channels, without moving them last and back.

before   movedim(layer_norm(movedim(x, 1, -1), [C], w, b, eps), -1, 1)          x: NCTHW
after    d = x - mean(x, 1);  d * rsqrt(mean(d * d, 1) + eps) * w + b           w, b: (1, C, 1, 1, 1)
"""

from __future__ import annotations

import torch
from torch import fx, nn

from ..graph.rewrite import Case, Graph, Rewrite, argument, dtype_of, is_call, is_constant, shape_of
from .cases import of
from .frames import aten


class _Norm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Permuted(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


def _moves(node: object, there: tuple[int, int], permutation: list[int]) -> bool:
    """Whether a node moves one axis: as movedim or as the same permutation, for rank 5."""
    if is_call(node, aten.movedim.int):
        return tuple(axis % 5 for axis in node.args[1:3]) == there
    return is_call(node, aten.permute.default) and list(node.args[1]) == permutation


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not _moves(node, (4, 1), [0, 4, 1, 2, 3]) or len(shape_of(node)) != 5:
        return None
    norm = node.args[0]
    if not is_call(norm, aten.layer_norm.default) or not _moves(norm.args[0], (1, 4), [0, 2, 3, 4, 1]):
        return None
    return node, norm, norm.args[0]


def _check(match: tuple[fx.Node, ...]) -> str | None:
    _, norm, _ = match
    axes = list(norm.args[1])
    if len(axes) != 1:
        return f"normalises over {len(axes)} axes, not over channels alone"
    if any(p is not None and not is_constant(p) for p in (argument(norm, 2), argument(norm, 3))):
        return "scale or offset is computed, not a constant"
    return None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    _, norm, moved = match
    x = moved.args[0]
    weight, bias, eps = (argument(norm, i) for i in (2, 3, 4))
    centred = graph.call(aten.sub.Tensor, x, graph.call(aten.mean.dim, x, [1], True))
    variance = graph.call(aten.mean.dim, graph.call(aten.mul.Tensor, centred, centred), [1], True)
    # A tensor of the clip's dtype: executorch would cast a bare number at run time, outside the delegate.
    floor = graph.constant(torch.full((1, 1, 1, 1, 1), eps, dtype=dtype_of(x)))
    scale = graph.call(aten.rsqrt.default, graph.call(aten.add.Tensor, variance, floor))
    y = graph.call(aten.mul.Tensor, centred, scale)
    for op, parameter in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
        if parameter is not None:
            y = graph.call(op, y, graph.constant(graph.value(parameter).reshape(1, -1, 1, 1, 1)))
    return y


REWRITE = Rewrite(
    name="channel_layer_norm",
    why=(
        "XNNPACK has no LayerNorm (three stay outside the delegate in the Hunyuan student), and moving channels "
        "last and back costs two transposes of a rank-5 tensor on every runtime."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("affine", lambda: _Norm(6), (1, 6, 3, 4, 5)),
        Case("no affine part", lambda: _Norm(6, elementwise_affine=False), (1, 6, 3, 4, 5)),
        Case("written with permute", lambda: _Permuted(6), (2, 6, 3, 4, 5)),
    ),
    near_misses=(
        Case("over width and channels", lambda: _Norm((5, 6)), (1, 6, 3, 4, 5), 0, "normalises over 2 axes"),
        Case("movedim alone", of(lambda x: x.movedim(-1, 1)), (1, 6, 3, 4, 5), 0),
    ),
)
