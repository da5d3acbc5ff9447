"""Frames made of blocks of channels, in stacked frames.

    before   transpose(x, 1, 2) -> reshape (1, T*s, C, H, W) -> transpose(1, 2)          x: (1, s*C, T, H, W)
    after    reshape(x, (s, C, T, H*W)) -> permute (1, 2, 0, 3) -> reshape (1, C, T*s, H, W)

The i-th block of C channels of frame t becomes frame t*s + i. Frames-first, this is a reshape, which
`cancel_layouts` leaves of it.
"""

from __future__ import annotations

from torch import Tensor, fx

from ..graph.rewrite import Case, Graph, Rewrite, is_call, shape_of
from .cases import of
from .frames import aten, batch_refusal


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not is_call(node, aten.transpose.int) or len(shape_of(node)) != 5:
        return None
    join = node.args[0]
    if not is_call(join, aten.reshape.default) or not is_call(join.args[0], aten.transpose.int):
        return None
    return (node, join, join.args[0]) if len(shape_of(join.args[0])) == 5 else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    back, join, swap = match
    for node in (swap, back):
        if {axis % 5 for axis in node.args[1:3]} != {1, 2}:
            return f"swaps axes {node.args[1]} and {node.args[2]}, not channels and time"
    n, t, c, h, w = shape_of(swap)
    parts = shape_of(join)[1] // t
    if shape_of(join) != (n, t * parts, c // max(parts, 1), h, w):
        return f"reshapes {shape_of(swap)} to {shape_of(join)}, which splits no frame"
    return batch_refusal(swap.args[0])


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    back, _, swap = match
    _, c, frames, h, w = shape_of(back)
    t = shape_of(swap)[1]
    x = graph.call(aten.reshape.default, swap.args[0], [frames // t, c, t, h * w])
    x = graph.call(aten.permute.default, x, [1, 2, 0, 3])
    return graph.call(aten.reshape.default, x, list(shape_of(back)))


def _split(x: Tensor, parts: int = 2) -> Tensor:
    n, c, t, h, w = x.shape
    return x.transpose(1, 2).reshape(n, t * parts, c // parts, h, w).transpose(1, 2)


REWRITE = Rewrite(
    name="split_frames_stacked",
    why="Vulkan shaders know four axes; between stacked frames one permutation does it.",
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("two frames of each", of(_split), (1, 8, 3, 4, 5)),
        Case("three frames of one", of(lambda x: _split(x, 3)), (1, 6, 1, 4, 5)),
        Case("one frame of each", of(lambda x: _split(x, 1).relu()), (1, 6, 3, 4, 5)),
    ),
    near_misses=(
        Case("batch of two", of(_split), (2, 8, 3, 4, 5), 0, "batch of 2"),
        Case(
            "pixels, not frames",
            of(lambda x: x.transpose(1, 2).reshape(1, 3, 4, 8, 5).transpose(1, 2)),
            (1, 8, 3, 4, 5),
            0,
            "splits no frame",
        ),
        Case(
            "other axes",
            of(lambda x: x.transpose(1, 2).reshape(1, 6, 4, 4, 5).transpose(1, 3)),
            (1, 8, 3, 4, 5),
            0,
            "swaps axes 1 and 3",
        ),
    ),
)
