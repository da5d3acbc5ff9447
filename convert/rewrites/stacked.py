"""The stacked layout: a clip as one tall picture, its frames one under the other.

    NCTHW (1, C, T, H, W)  --to_stack-->  (1, C, T*H, W)  --from_stack-->  NCTHW (1, C, T, H, W)

Both are reshapes: nothing moves. For runtimes whose convolution takes a batch of one only. What works on channels
or on single values is unaware of the frames, a span of frames is a span of rows, and a pixel shuffle by r makes r
rows of each row; only a convolution in space has to be kept from seeing the frame above and below (`conv_stacked`).
"""

from __future__ import annotations

from torch import fx

from ..graph.rewrite import Graph, shape_of
from .frames import aten


def to_stack(graph: Graph, x: fx.Node) -> fx.Node:
    """NCTHW with N = 1 to (1, C, T*H, W)."""
    _, c, t, h, w = shape_of(x)
    return graph.call(aten.reshape.default, x, [1, c, t * h, w])


def from_stack(graph: Graph, x: fx.Node, frames: int) -> fx.Node:
    """(1, C, T*H, W) to NCTHW with N = 1."""
    _, c, rows, w = shape_of(x)
    return graph.call(aten.reshape.default, x, [1, c, frames, rows // frames, w])
