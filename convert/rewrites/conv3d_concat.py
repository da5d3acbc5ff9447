"""Dense 3D convolution to one 2D convolution over its time taps, concatenated on channels.

    before   conv3d(x; W (O, I, K, kh, kw), b)                       x, y: NCTHW
    after    f = to_frames(x)                                        f: (T + K - 1, I, H, W)
             y = conv2d(cat([f[0:T], f[1:T+1], ...], 1); W' (O, K*I, kh, kw), b)
             from_frames(y)

All taps are summed in one accumulator, which is what 8-bit convolutions need: their sums are rounded to 8 bits
once. The price is a copy of the input per tap.
"""

from __future__ import annotations

from torch import fx

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, shape_of
from .cases import conv3d
from .frames import aten, convolve, from_frames, time_refusal, to_frames

# The convolution that makes the frames has 3, at full size: its copies were 95 MB of `ltx`'s peak memory.
_FEWEST_OUTPUTS = 4


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    return (node,) if is_call(node, aten.conv3d.default) else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    (conv,) = match
    groups = argument(conv, 6)
    if groups != 1:
        return f"{groups} groups: the taps' channels would have to be interleaved, and convolved group by group"
    outputs, _, taps = shape_of(conv.args[1])[:3]
    if taps == 1:
        return "one tap: there is nothing to concatenate"
    if outputs < _FEWEST_OUTPUTS:
        return f"{outputs} output channels: the copies of the input would outweigh all else"
    return time_refusal(conv)


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (conv,) = match
    x, weight_node = conv.args[:2]
    weight = graph.value(weight_node)
    taps, frames = weight.shape[2], shape_of(conv)[2]
    clip = to_frames(graph, x)
    parts = [graph.call(aten.slice.Tensor, clip, 0, tap, tap + frames) for tap in range(taps)]
    kernel = graph.constant(weight.transpose(1, 2).flatten(1, 2))
    side_by_side = graph.call(aten.cat.default, parts, 1)
    return from_frames(graph, convolve(graph, conv, side_by_side, kernel, argument(conv, 2)))


REWRITE = Rewrite(
    name="conv3d_concat",
    why=(
        "onnxruntime has no 8-bit 3D convolution, and an 8-bit 2D one per tap rounds each tap's sum to 8 bits. As "
        "one convolution, 64 channels at 9x64x64 ran 4 times as fast in int8 as in fp32 on AVX512-VNNI."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("dense", conv3d(4, 6, 3), (1, 4, 5, 6, 7)),
        Case("five taps, no bias", conv3d(3, 4, 5, bias=False), (1, 3, 6, 7, 6)),
        Case("one frame out", conv3d(4, 4, 3), (1, 4, 3, 5, 5)),
        Case("stride in space", conv3d(4, 4, 3, stride=(1, 2, 2)), (1, 4, 4, 6, 6)),
    ),
    near_misses=(
        Case("depthwise", conv3d(6, 6, 5, groups=6), (1, 6, 7, 5, 6), 0, "6 groups"),
        Case("grouped", conv3d(8, 4, 3, groups=2), (1, 8, 4, 5, 5), 0, "2 groups"),
        Case("pointwise", conv3d(4, 6, 1, padding=0), (1, 4, 3, 5, 5), 0, "one tap"),
        Case("few outputs", conv3d(4, 3, 3), (1, 4, 5, 5, 5), 0, "3 output channels"),
        Case("zero padding in time", conv3d(4, 4, 3, padding=1), (1, 4, 4, 5, 5), 0, "zero padding of 1 in time"),
        Case("stride in time", conv3d(4, 4, 3, stride=2), (1, 4, 5, 6, 6), 0, "stride 2"),
        Case("batch of two", conv3d(4, 4, 3), (2, 4, 4, 5, 5), 0, "batch of 2"),
    ),
)
