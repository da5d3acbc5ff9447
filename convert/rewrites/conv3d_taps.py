"""3D convolution to one 2D convolution per time tap, summed.

    before   conv3d(x; W (O, I/g, K, kh, kw), b)                     x, y: NCTHW
    after    f = to_frames(x)                                        f: (T + K - 1, C, H, W)
             y = conv2d(f[0:T]; W[:, :, 0], b) + conv2d(f[1:T+1]; W[:, :, 1]) + ...
             from_frames(y)

Dense, depthwise, grouped and pointwise (K = 1: a single convolution) alike.
"""

from __future__ import annotations

from torch import fx

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, shape_of
from .cases import conv3d
from .frames import aten, convolve, from_frames, summed, time_refusal, to_frames


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    return (node,) if is_call(node, aten.conv3d.default) else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    (conv,) = match
    return time_refusal(conv)


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (conv,) = match
    x, weight_node = conv.args[:2]
    bias, groups = argument(conv, 2), argument(conv, 6)
    weight = graph.value(weight_node)
    taps, frames = weight.shape[2], shape_of(conv)[2]
    clip = to_frames(graph, x)

    def part(tap: int) -> fx.Node:
        met = clip if taps == 1 else graph.call(aten.slice.Tensor, clip, 0, tap, tap + frames)
        kernel = graph.constant(weight[:, :, tap])
        return convolve(graph, conv, met, kernel, bias if tap == 0 else None, groups)

    return from_frames(graph, summed(graph, map(part, range(taps))))


REWRITE = Rewrite(
    name="conv3d_taps",
    why=(
        "XNNPACK and Vulkan have no 3D convolution (ExecuTorch's CPU kernel fails at run time with 0x12: "
        "'Expect input tensor to be 3-D or 4-D, but got, 5'), and onnxruntime runs the taps 1.2 times as fast "
        "over the whole LTX decoder and a depthwise 5x5x5 2.2 times as fast."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("dense", conv3d(4, 6, 3), (1, 4, 5, 6, 7)),
        Case("depthwise", conv3d(6, 6, 5, groups=6), (1, 6, 7, 5, 6)),
        Case("grouped, no bias", conv3d(8, 4, 3, groups=2, bias=False), (1, 8, 4, 5, 5)),
        Case("pointwise", conv3d(4, 6, 1), (1, 4, 3, 5, 5)),
        Case("one frame out", conv3d(4, 4, 3), (1, 4, 3, 5, 5)),
        Case("stride in space", conv3d(4, 4, 3, stride=(1, 2, 2)), (1, 4, 4, 6, 6)),
    ),
    near_misses=(
        Case("zero padding in time", conv3d(4, 4, 3, padding=1), (1, 4, 4, 5, 5), 0, "zero padding of 1 in time"),
        Case("stride in time", conv3d(4, 4, 3, stride=2), (1, 4, 5, 6, 6), 0, "stride 2"),
        Case("dilation in time", conv3d(4, 4, 3, dilation=(2, 1, 1)), (1, 4, 6, 6, 6), 0, "dilation 2"),
        Case("batch of two", conv3d(4, 4, 3), (2, 4, 4, 5, 5), 0, "batch of 2"),
    ),
)
