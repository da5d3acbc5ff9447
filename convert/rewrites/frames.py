"""The frames-first layout that the rewrites share: frames along the batch axis of rank-4 tensors.

    NCTHW (1, C, T, H, W)  --to_frames-->  (T, C, H, W)  --from_frames-->  NCTHW (1, C, T, H, W)

No mobile CPU or Vulkan delegate takes a rank-5 convolution, and frames-first is the rank-4 form in which a
time tap is a contiguous slice and a per-frame op is simply batched. Every rewrite of a rank-5 op goes through
this pair; `cancel_layouts` then removes the pairs that meet.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, reduce
from typing import Any

import torch
from torch import fx

from ..graph.rewrite import Graph, argument, is_constant, shape_of

aten = torch.ops.aten

# NCTHW axis -> frames-first axis, for a batch of one.
FRAME_AXIS = {1: 1, 2: 0, 3: 2, 4: 3}


def to_frames(graph: Graph, x: fx.Node) -> fx.Node:
    """NCTHW with N = 1 to (T, C, H, W)."""
    _, c, t, h, w = shape_of(x)
    return graph.call(aten.reshape.default, graph.call(aten.transpose.int, x, 1, 2), [t, c, h, w])


def from_frames(graph: Graph, x: fx.Node) -> fx.Node:
    """(T, C, H, W) to NCTHW with N = 1."""
    t, c, h, w = shape_of(x)
    return graph.call(aten.transpose.int, graph.call(aten.reshape.default, x, [1, t, c, h, w]), 1, 2)


def frame_axis(axis: int) -> int:
    """Where an axis of a rank-5 NCTHW tensor stands in the frames-first layout."""
    return FRAME_AXIS[axis % 5]


def is_clip(value: Any) -> bool:
    """Whether a graph value is a rank-5 tensor."""
    return isinstance(value, fx.Node) and len(shape_of(value)) == 5


def batch_refusal(x: fx.Node) -> str | None:
    """Frames-first holds one clip: why a larger batch is refused."""
    n = shape_of(x)[0]
    return None if n == 1 else f"batch of {n}: frames-first holds one clip, export with batch 1"


def time_refusal(conv: fx.Node) -> str | None:
    """Why a conv3d is not the sum of its time taps, each of them a convolution of one clip's frames."""
    stride, padding, dilation = (argument(conv, i) for i in (3, 4, 5))
    if not is_constant(conv.args[1]):
        return "the weight is computed, not a constant"
    if isinstance(padding, str):
        return f"padding {padding!r} is not given as numbers"
    if padding[0]:
        return f"zero padding of {padding[0]} in time; pad the input instead"
    if stride[0] != 1 or dilation[0] != 1:
        return f"stride {stride[0]} and dilation {dilation[0]} in time; both must be 1"
    return batch_refusal(conv.args[0])


def convolve(
    graph: Graph, conv: fx.Node, frames: fx.Node, kernel: fx.Node, bias: fx.Node | None = None, groups: int = 1
) -> fx.Node:
    """Convolve frames as `conv`, a conv3d or conv2d, does within a frame: its stride, padding and dilation there.

    Args:
        frames: (T, C, H, W).
        kernel: (O, C / groups, kh, kw).
    """
    stride, padding, dilation = (list(argument(conv, i)[-2:]) for i in (3, 4, 5))
    return graph.call(aten.conv2d.default, frames, kernel, bias, stride, padding, dilation, groups)


def summed(graph: Graph, parts: Iterable[fx.Node]) -> fx.Node:
    """The sum of one or more tensors, in their order."""
    return reduce(partial(graph.call, aten.add.Tensor), parts)
