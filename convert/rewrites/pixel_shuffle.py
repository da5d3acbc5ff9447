"""Pixel shuffles on clips, and at rank 5 for runtimes without the op.

`FRAMES`   before   pixel_shuffle(x, r)                        x: (1, T, C*r*r, H, W)
           after    reshape (T, C*r*r, H, W) -> pixel_shuffle -> reshape (1, T, C, H*r, W*r)

`STACKED`  before   pixel_shuffle(x, r)                        x: (1, T, C*r*r, H, W) or (T, C*r*r, H, W)
           after    transpose -> reshape (1, C*r*r, T*H, W) -> pixel_shuffle -> reshape -> transpose

`PERMUTED` before   pixel_shuffle(x, r)                        x: (N, C*r*r, H, W)
           after    reshape (N*C, r, r, H, W) -> permute (0, 3, 1, 4, 2) -> reshape (N, C, H*r, W*r)
"""

from __future__ import annotations

import math

from torch import fx
from torch.nn import functional as F

from ..graph.rewrite import Case, Graph, Rewrite, is_call, shape_of
from .cases import of
from .frames import aten, from_frames, to_frames
from .stacked import from_stack, to_stack


def _match_rank(*ranks: int):
    def match(node: fx.Node) -> tuple[fx.Node, ...] | None:
        found = is_call(node, aten.pixel_shuffle.default) and len(shape_of(node)) in ranks
        return (node,) if found else None

    return match


def _fold(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    x, factor = node.args
    shape = shape_of(x)
    flat = graph.call(aten.reshape.default, x, [math.prod(shape[:-3]), *shape[-3:]])
    return graph.call(
        aten.reshape.default, graph.call(aten.pixel_shuffle.default, flat, factor), list(shape_of(node))
    )


def _stack(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    x, factor = node.args
    frames = shape_of(x)[-4]
    clip = from_frames(graph, graph.call(aten.reshape.default, x, list(shape_of(x)[-4:])))
    y = graph.call(aten.pixel_shuffle.default, to_stack(graph, clip), factor)
    return graph.call(aten.reshape.default, to_frames(graph, from_stack(graph, y, frames)), list(shape_of(node)))


def _is_one_clip(match: tuple[fx.Node, ...]) -> str | None:
    shape = shape_of(match[0].args[0])
    clips = math.prod(shape[:-4])
    return None if clips == 1 else f"{clips} clips: stacked frames are those of one"


def _match_frames(node: fx.Node) -> tuple[fx.Node, ...] | None:
    # One picture is a stack already.
    return (node,) if _match_rank(4, 5)(node) and math.prod(shape_of(node)[:-3]) > 1 else None


def _permute(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    x, r = node.args
    n, c, h, w = shape_of(x)
    y = graph.call(aten.reshape.default, x, [n * c // (r * r), r, r, h, w])
    y = graph.call(aten.permute.default, y, [0, 3, 1, 4, 2])
    return graph.call(aten.reshape.default, y, list(shape_of(node)))


def _shuffle(r: int):
    return of(lambda x: F.pixel_shuffle(x, r))


FRAMES = Rewrite(
    name="pixel_shuffle_frames",
    why="Core ML and XNNPACK shuffle rank-4 tensors; frames are a batch.",
    match=_match_rank(5, 6),
    check=lambda match: None,
    replace=_fold,
    cases=(
        Case("clip", _shuffle(2), (1, 3, 8, 4, 5)),
        Case("two clips", _shuffle(3), (2, 3, 9, 2, 2)),
    ),
    near_misses=(Case("frames already a batch", _shuffle(2), (3, 8, 4, 5), 0),),
)

STACKED = Rewrite(
    name="pixel_shuffle_stacked",
    why=(
        "Between stacked frames, where a shuffle by r makes r rows of each row and no frame meets another, it "
        "needs no change of layout; with frames as the batch, two copies of the clip at its largest."
    ),
    match=_match_frames,
    check=_is_one_clip,
    replace=_stack,
    cases=(
        Case("clip", _shuffle(2), (1, 3, 8, 4, 5)),
        Case("frames", _shuffle(3), (4, 18, 2, 3)),
    ),
    near_misses=(
        Case("one picture", _shuffle(2), (1, 8, 4, 5), 0),
        Case("two clips", _shuffle(2), (2, 3, 8, 4, 5), 0, "2 clips"),
    ),
)

PERMUTED = Rewrite(
    name="pixel_shuffle_permuted",
    why=(
        "XNNPACK has no pixel shuffle and ExecuTorch would run its portable kernel outside the delegate; "
        "the usual form is of rank 6, this one of rank 5."
    ),
    match=_match_rank(4),
    check=lambda match: None,
    replace=_permute,
    cases=(
        Case("frames", _shuffle(2), (3, 8, 4, 5)),
        Case("factor three", _shuffle(3), (1, 18, 2, 3)),
    ),
    near_misses=(Case("clip", _shuffle(2), (1, 3, 8, 4, 5), 0),),
)
