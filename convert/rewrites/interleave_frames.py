"""The temporal half of the decoupled 3D pixel shuffle, at rank 4.

    before   reshape(x, (1, C, s, T, H, W)) -> transpose(2, 3) -> reshape (1, C, T*s, H, W)     x: NCTHW

`REWRITE`  after    f = to_frames(x)                                      (T, C*s, H, W)
                    reshape (T, C, s, H*W) -> transpose(1, 2) -> reshape (T*s, C, H, W) -> from_frames

`STACKED`  after    reshape(x, (C, s, T, H*W)) -> transpose(1, 2) -> reshape (1, C, T*s, H, W)

Channel c*s + i of frame t becomes channel c of frame t*s + i.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, fx

from ..graph.rewrite import Case, Graph, Rewrite, is_call, shape_of
from .cases import of
from .frames import aten, batch_refusal, from_frames, to_frames


def _interleave(x: Tensor, s: int = 2) -> Tensor:
    n, c, t, h, w = x.shape
    return x.reshape(n, c // s, s, t, h, w).transpose(2, 3).reshape(n, c // s, t * s, h, w)


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not is_call(node, aten.reshape.default) or len(shape_of(node)) != 5:
        return None
    swap = node.args[0]
    if not is_call(swap, aten.transpose.int) or len(shape_of(swap)) != 6:
        return None
    split = swap.args[0]
    if not is_call(split, aten.reshape.default) or len(shape_of(split.args[0])) != 5:
        return None
    return node, swap, split


def _check(match: tuple[fx.Node, ...]) -> str | None:
    join, swap, split = match
    n, c, s, t, h, w = shape_of(split)
    if {axis % 6 for axis in swap.args[1:3]} != {2, 3}:
        return f"swaps axes {swap.args[1]} and {swap.args[2]}, not the new axis and time"
    if shape_of(split.args[0]) != (n, c * s, t, h, w) or shape_of(join) != (n, c, t * s, h, w):
        return f"reshapes {shape_of(split.args[0])} to {shape_of(join)}, which is no interleaving of frames"
    return batch_refusal(split.args[0])


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    _, _, split = match
    _, c, s, t, h, w = shape_of(split)
    x = graph.call(aten.reshape.default, to_frames(graph, split.args[0]), [t, c, s, h * w])
    x = graph.call(aten.transpose.int, x, 1, 2)
    return from_frames(graph, graph.call(aten.reshape.default, x, [t * s, c, h, w]))


def _replace_stacked(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    join, _, split = match
    _, c, s, t, h, w = shape_of(split)
    x = graph.call(aten.reshape.default, split.args[0], [c, s, t, h * w])
    x = graph.call(aten.transpose.int, x, 1, 2)
    return graph.call(aten.reshape.default, x, list(shape_of(join)))


REWRITE = Rewrite(
    name="interleave_frames",
    why="Core ML refuses rank 6, and Vulkan anything over rank 4.",
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("two frames", of(_interleave), (1, 8, 3, 4, 5)),
        Case("four frames from one", of(lambda x: _interleave(x, 4)), (1, 8, 1, 4, 5)),
    ),
    near_misses=(
        Case("batch of two", of(_interleave), (2, 8, 3, 4, 5), 0, "batch of 2"),
        Case(
            "shuffle into height",
            of(lambda x: x.reshape(1, 4, 2, 3, 4, 5).transpose(3, 4).reshape(1, 4, 8, 3, 5)),
            (1, 8, 3, 4, 5),
            0,
            "swaps axes 3 and 4",
        ),
    ),
)

STACKED = replace(
    REWRITE,
    name="interleave_frames_stacked",
    why=(
        "Vulkan shaders know four axes. From and to stacked frames, or any layout with channels before time, one "
        "transpose does it: the frames-first form needs three."
    ),
    replace=_replace_stacked,
)
