"""Convolutions of clips as 2D convolutions of one picture, all frames one under the other.

`CONV3D`   before   conv3d(x; W (O, I/g, K, k, kw), b)           x: (1, I, T+K-1, H, W), y: (1, O, T, H, W)
           after    s = stack(pad(x, p rows of zeros under each frame))           (1, I, (T+K-1)*(H+p), W)
                    z = conv2d(s[rows of frames 0..T]; W[:, :, 0], b)
                      + conv2d(s[rows of frames 1..T+1]; W[:, :, 1]) + ...        (1, O, T*(H+p), W)
                    y = the first H rows of each frame of z

`CONV2D`   before   conv2d(x; W (O, I/g, k, kw), b)              x: (T, I, H, W), y: (T, O, H, W)
           after    the same with one tap, between changes of layout

p = (k - 1) / 2: the zeros under one frame are also those over the next, and the convolution's own padding is the
first frame's. Kernels of height 1 need neither the zeros nor the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, is_constant, shape_of
from .cases import conv3d
from .frames import aten, convolve, from_frames, summed, time_refusal, to_frames
from .stacked import from_stack, to_stack


def _match_conv3d(node: fx.Node) -> tuple[fx.Node, ...] | None:
    return (node,) if is_call(node, aten.conv3d.default) else None


def _match_conv2d(node: fx.Node) -> tuple[fx.Node, ...] | None:
    return (node,) if is_call(node, aten.conv2d.default) and shape_of(node)[0] > 1 else None


def _plane_refusal(conv: fx.Node) -> str | None:
    """Why the part in space cannot be done on stacked frames."""
    stride, padding, dilation = (argument(conv, i) for i in (3, 4, 5))
    kernel = shape_of(conv.args[1])[-2:]
    if not is_constant(conv.args[1]):
        return "the weight is computed, not a constant"
    if isinstance(padding, str):
        return f"padding {padding!r} is not given as numbers"
    if set(stride[-2:]) != {1} or set(dilation[-2:]) != {1}:
        return f"stride {list(stride)} and dilation {list(dilation)}; both must be 1 in space"
    if 2 * padding[-2] != kernel[0] - 1:
        return f"padding {list(padding)}: a frame keeps its height only with half the kernel's"
    return None


def _check_conv3d(match: tuple[fx.Node, ...]) -> str | None:
    (conv,) = match
    return _plane_refusal(conv) or time_refusal(conv)


def _convolve(graph: Graph, clip: fx.Node, conv: fx.Node, taps: Sequence[Tensor]) -> fx.Node:
    """The convolution `conv` of an NCTHW clip, given its kernel tap by tap."""
    bias, padding, groups = argument(conv, 2), argument(conv, 4), argument(conv, 6)
    _, _, t, height, _ = shape_of(clip)
    pad = padding[-2]
    rows, frames = height + pad, t - len(taps) + 1
    if pad:
        x = graph.call(aten.reshape.default, clip, list(shape_of(clip)[1:]))
        x = graph.call(aten.constant_pad_nd.default, x, [0, 0, 0, pad])
        clip = graph.call(aten.reshape.default, x, [1, *shape_of(x)])
    stack = to_stack(graph, clip)

    def part(tap: int) -> fx.Node:
        met = stack
        if len(taps) > 1:
            met = graph.call(aten.slice.Tensor, stack, 2, tap * rows, (tap + frames) * rows)
        return convolve(graph, conv, met, graph.constant(taps[tap]), bias if tap == 0 else None, groups)

    y = from_stack(graph, summed(graph, map(part, range(len(taps)))), frames)
    if not pad:
        return y
    y = graph.call(aten.reshape.default, y, list(shape_of(y)[1:]))
    y = graph.call(aten.slice.Tensor, y, 2, 0, height)
    return graph.call(aten.reshape.default, y, [1, *shape_of(y)])


def _replace_conv3d(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (conv,) = match
    return _convolve(graph, conv.args[0], conv, graph.value(conv.args[1]).unbind(2))


def _replace_conv2d(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (conv,) = match
    clip = from_frames(graph, conv.args[0])
    return to_frames(graph, _convolve(graph, clip, conv, [graph.value(conv.args[1])]))


def _conv2d(*args: Any, **kwargs: Any):
    return lambda: nn.Conv2d(*args, **kwargs)


_WHY = (
    "ExecuTorch's Vulkan delegate takes a 2D convolution of one picture only ('op args not supported' for any "
    "larger batch), and no 3D convolution. One picture per frame would be as many dispatches as frames, and an "
    "upload of the weights for each; the zeros between stacked frames cost p/H of the multiply-adds."
)

CONV3D = Rewrite(
    name="conv3d_stacked",
    why=_WHY,
    match=_match_conv3d,
    check=_check_conv3d,
    replace=_replace_conv3d,
    cases=(
        Case("dense", conv3d(4, 6, 3), (1, 4, 5, 6, 7)),
        Case("depthwise", conv3d(6, 6, 5, groups=6, padding=(0, 2, 2)), (1, 6, 7, 5, 6)),
        Case("grouped, no bias", conv3d(8, 4, 3, groups=2, bias=False), (1, 8, 4, 5, 5)),
        Case("pointwise", conv3d(4, 6, 1, padding=0), (1, 4, 3, 5, 5)),
        Case("taps in time only", conv3d(4, 6, (3, 1, 1), padding=0), (1, 4, 5, 4, 5)),
        Case("one frame out", conv3d(4, 4, 3), (1, 4, 3, 5, 5)),
        Case("frames lower than the kernel", conv3d(4, 4, 5, padding=(0, 2, 2)), (1, 4, 6, 1, 3)),
        Case("narrower than wide", conv3d(4, 4, 3, padding=(0, 1, 0)), (1, 4, 4, 5, 6)),
    ),
    near_misses=(
        Case("zero padding in time", conv3d(4, 4, 3, padding=1), (1, 4, 4, 5, 5), 0, "zero padding of 1 in time"),
        Case("stride in time", conv3d(4, 4, 3, stride=(2, 1, 1)), (1, 4, 5, 6, 6), 0, "stride 2"),
        Case("stride in space", conv3d(4, 4, 3, stride=(1, 2, 2)), (1, 4, 5, 6, 6), 0, "must be 1 in space"),
        Case("unpadded", conv3d(4, 4, 3, padding=0), (1, 4, 4, 6, 6), 0, "half the kernel's"),
        Case("batch of two", conv3d(4, 4, 3), (2, 4, 4, 5, 5), 0, "batch of 2"),
    ),
)

CONV2D = Rewrite(
    name="conv2d_stacked",
    why=_WHY,
    match=_match_conv2d,
    check=lambda match: _plane_refusal(match[0]),
    replace=_replace_conv2d,
    cases=(
        Case("frames", _conv2d(4, 6, 3, padding=1), (5, 4, 6, 7)),
        Case("depthwise", _conv2d(4, 4, 5, padding=2, groups=4, bias=False), (3, 4, 6, 7)),
        Case("pointwise", _conv2d(4, 6, 1), (3, 4, 6, 7)),
    ),
    near_misses=(
        Case("one picture", _conv2d(4, 6, 3, padding=1), (1, 4, 6, 7), 0),
        Case("stride", _conv2d(4, 6, 3, padding=1, stride=2), (3, 4, 6, 7), 0, "must be 1 in space"),
        Case("dilation", _conv2d(4, 6, 3, padding=2, dilation=2), (3, 4, 6, 7), 0, "dilation [2, 2]"),
        Case("unpadded", _conv2d(4, 6, 3), (3, 4, 6, 7), 0, "half the kernel's"),
    ),
)
