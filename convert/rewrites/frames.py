"""The frames-first layout that the rewrites share: frames along the batch axis of rank-4 tensors.

    NCTHW (1, C, T, H, W)  --to_frames-->  (T, C, H, W)  --from_frames-->  NCTHW (1, C, T, H, W)

No mobile CPU or Vulkan delegate takes a rank-5 convolution, and frames-first is the rank-4 form in which a
time tap is a contiguous slice and a per-frame op is simply batched. Every rewrite of a rank-5 op goes through
this pair; `cancel_layouts` then removes the pairs that meet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..rewrite import Graph, shape_of

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
