"""Mean over channels to a 1x1 convolution with constant weights.

    before   mean(x, dim=1, keepdim=True)                    x: (N, C, T, H, W) or (N, C, H, W)
    after    conv2d(x; W (1, C, 1, 1) = 1/C)                 frames-first where x is a clip

The reduction inside every channel RMSNorm and LayerNorm.
"""

from __future__ import annotations

import torch
from torch import fx

from ..graph.rewrite import Case, Graph, Rewrite, argument, dtype_of, is_call, shape_of
from .cases import of
from .frames import aten, batch_refusal, from_frames, is_clip, to_frames


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not is_call(node, aten.mean.dim) or len(shape_of(node.args[0])) not in (4, 5):
        return None
    axes = argument(node, 1) or []
    return (node,) if [axis % len(shape_of(node.args[0])) for axis in axes] == [1] else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    (mean,) = match
    if not argument(mean, 2):
        return "keepdim is False: the result has no channel axis"
    return batch_refusal(mean.args[0]) if is_clip(mean.args[0]) else None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (mean,) = match
    x = mean.args[0]
    channels = shape_of(x)[1]
    weight = graph.constant(torch.full((1, channels, 1, 1), 1 / channels, dtype=dtype_of(x)))
    if not is_clip(x):
        return graph.call(aten.conv2d.default, x, weight)
    return from_frames(graph, graph.call(aten.conv2d.default, to_frames(graph, x), weight))


REWRITE = Rewrite(
    name="channel_mean",
    why=(
        "XNNPACK takes a mean over height and width only, so each of the 51 norms of the Hunyuan student would "
        "split its delegate; as a convolution the reduction stays inside, without moving channels last and back."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("clip", of(lambda x: x.mean(1, keepdim=True)), (1, 6, 3, 4, 5)),
        Case("frame", of(lambda x: x.mean(-3, keepdim=True)), (2, 6, 4, 5)),
    ),
    near_misses=(
        Case("without keepdim", of(lambda x: x.mean(1)), (1, 6, 3, 4, 5), 0, "keepdim is False"),
        Case("over height and width", of(lambda x: x.mean((-1, -2), keepdim=True)), (1, 6, 3, 4, 5), 0),
        Case("batch of two", of(lambda x: x.mean(1, keepdim=True)), (2, 6, 3, 4, 5), 0, "batch of 2"),
    ),
)
