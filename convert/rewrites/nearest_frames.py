"""Nearest-neighbour resizing of clips by whole factors, at rank 4.

`CLIPS`     before   upsample_nearest3d(x, (T*a, H*b, W*b))                                x: NCTHW
            after    f = to_frames(x)
                     f = reshape(cat([f] * a, 1), (T*a, C, H, W))
                     from_frames(upsample_nearest2d(f, (H*b, W*b)))

`STACKED`   the same, frames one under the other: rows of the stack are resized as a picture's are

`SHUFFLED`  before   upsample_nearest2d(x, (H*b, W*b))                                     x: (N, C, H, W)
            after    pixel_shuffle(conv2d(x; ones (C*b*b, 1, 1, 1), groups C), b)

The exact kinds of the ops compute the same where the factors are whole.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx
from torch.nn import functional as F

from ..graph.rewrite import Case, Graph, Rewrite, dtype_of, is_call, shape_of
from .cases import of
from .frames import aten, batch_refusal, from_frames, to_frames
from .stacked import from_stack, to_stack

_CLIPS = (aten.upsample_nearest3d.vec, aten._upsample_nearest_exact3d.vec)
_PICTURES = (aten.upsample_nearest2d.vec, aten._upsample_nearest_exact2d.vec)


def _match_clips(node: fx.Node) -> tuple[fx.Node, ...] | None:
    return (node,) if is_call(node, *_CLIPS) else None


def _match_pictures(node: fx.Node) -> tuple[fx.Node, ...] | None:
    return (node,) if is_call(node, *_PICTURES) else None


def _factors(node: fx.Node) -> list[float]:
    return [after / before for before, after in zip(shape_of(node.args[0])[2:], shape_of(node)[2:])]


def _factor_refusal(node: fx.Node) -> str | None:
    factors = _factors(node)
    if any(factor != int(factor) for factor in factors):
        return f"scales by {factors}, not by whole factors"
    return None


def _check_clips(match: tuple[fx.Node, ...]) -> str | None:
    return _factor_refusal(match[0]) or batch_refusal(match[0].args[0])


def _check_pictures(match: tuple[fx.Node, ...]) -> str | None:
    if reason := _factor_refusal(match[0]):
        return reason
    rows, columns = _factors(match[0])
    return None if rows == columns else f"scales rows by {rows} and columns by {columns}"


def _resized(graph: Graph, x: fx.Node, rows: float, columns: float) -> fx.Node:
    height, width = shape_of(x)[2:]
    if rows == columns == 1:
        return x
    size = [int(height * rows), int(width * columns)]
    return graph.call(aten.upsample_nearest2d.vec, x, size, None)


def _replace_clips(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    times, rows, columns = _factors(node)
    x = to_frames(graph, node.args[0])
    if times > 1:
        t, c, h, w = shape_of(x)
        x = graph.call(aten.cat.default, [x] * int(times), 1)
        x = graph.call(aten.reshape.default, x, [t * int(times), c, h, w])
    return from_frames(graph, _resized(graph, x, rows, columns))


def _replace_stacked(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    times, rows, columns = _factors(node)
    x = node.args[0]
    _, c, t, h, w = shape_of(x)
    if times > 1:
        x = graph.call(aten.reshape.default, x, [1, c * t, h, w])
        x = graph.call(aten.cat.default, [x] * int(times), 2)
        x = graph.call(aten.reshape.default, x, [1, c, t * int(times), h, w])
    return from_stack(graph, _resized(graph, to_stack(graph, x), rows, columns), t * int(times))


def _replace_pictures(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    x, factor = node.args[0], int(_factors(node)[0])
    channels = shape_of(x)[1]
    ones = graph.constant(torch.ones(channels * factor * factor, 1, 1, 1, dtype=dtype_of(x)))
    x = graph.call(aten.conv2d.default, x, ones, None, [1, 1], [0, 0], [1, 1], channels)
    return graph.call(aten.pixel_shuffle.default, x, factor)


def _resize(scale, mode: str = "nearest"):
    return of(lambda x: F.interpolate(x, scale_factor=scale, mode=mode))


_CASES = (
    Case("time and space", _resize((2.0, 2.0, 2.0)), (1, 4, 3, 2, 5)),
    Case("space alone, exactly", _resize((1.0, 2.0, 2.0), "nearest-exact"), (1, 4, 3, 2, 5)),
    Case("threefold in time", _resize((3.0, 1.0, 1.0)), (1, 4, 2, 3, 5)),
    Case("size given", of(lambda x: F.interpolate(x, size=(4, 4, 12))), (1, 4, 2, 2, 3)),
)
_NEAR = (
    Case("half as large again", _resize((1.0, 1.5, 1.5)), (1, 4, 3, 2, 4), 0, "not by whole factors"),
    Case("batch of two", _resize((2.0, 2.0, 2.0)), (2, 4, 3, 2, 5), 0, "batch of 2"),
    Case("linear", _resize((2.0, 2.0, 2.0), "trilinear"), (1, 4, 3, 2, 5), 0),
)

CLIPS = Rewrite(
    name="nearest_frames",
    why="No delegate resizes at rank 5, and Core ML's op is of rank 4.",
    match=_match_clips,
    check=_check_clips,
    replace=_replace_clips,
    cases=_CASES,
    near_misses=_NEAR,
)

STACKED = replace(
    CLIPS,
    name="nearest_stacked",
    why="Vulkan takes rank 4 at most, and resizes one picture: stacked frames are one.",
    replace=_replace_stacked,
)

SHUFFLED = Rewrite(
    name="nearest_shuffled",
    why=(
        "XNNPACK has no nearest-neighbour resize and its delegate would be cut in two there. It has a depthwise "
        "convolution that copies channels, and the pixel shuffle's permutation."
    ),
    match=_match_pictures,
    check=_check_pictures,
    replace=_replace_pictures,
    cases=(
        Case("frames", _resize(2.0), (3, 4, 2, 5)),
        Case("threefold, exactly", _resize(3.0, "nearest-exact"), (1, 4, 2, 5)),
    ),
    near_misses=(
        Case("rows alone", _resize((2.0, 1.0)), (1, 4, 2, 5), 0, "scales rows by 2.0"),
        Case("half as large again", _resize(1.5), (1, 4, 2, 4), 0, "not by whole factors"),
        Case("linear", _resize(2.0, "bilinear"), (1, 4, 2, 5), 0),
    ),
)
