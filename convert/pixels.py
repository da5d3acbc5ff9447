"""Frames as 8-bit RGBA, made by the artefact itself.

A small tail is appended to a graph after its rewrites were applied and checked. It is not part of the model that is
captured: at the edge between two levels the slightest difference of a sum is a whole level, so that a rewrite could
no longer be told right from wrong.

    before   frames (1, 3, T, H, W)
    after    frames -> clamp -> * scale + offset -> alpha -> interleaved rows (1, T, H, W, 4) -> uint8

A level is `floor((clamp(x, low, high) - low) * 255 / (high - low) + 0.5)`, with `low` and `high` of the decoder's
value range. Alpha is 255. Images lack the T.

Core ML has no unsigned bytes in its outputs. There the four bytes of a pixel are one int32, little endian: the
memory of the output is the same interleaved RGBA. The value is R + 256 G + 65536 B - 2^24, whose every step has at
most 24 bits: it is exact even where a unit computes integers in fp32.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, fx

from handheld.runtime.manifest import Tolerance

from .errors import ExportError
from .graph.nodes import dtype_of, is_call, shape_of
from .graph.ops import RESHAPES
from .graph.rewrite import Graph, apply
from .rewrites import cancel_layouts

aten = torch.ops.aten

# What `--pixels` takes: frames as the model gives them, or as 8-bit RGBA.
PIXELS = ("float", "rgba8")

# How a target's artefacts give pixels: each value a byte, or each pixel an int32.
Form = Literal["uint8", "int32"]

_LEVELS = 255.0


def check_pixels(pixels: str) -> None:
    """Raise ExportError for a word that is none of PIXELS."""
    if pixels not in PIXELS:
        raise ExportError(f"Pixels {pixels!r} are none: there are {', '.join(PIXELS)}.")


def layout_of(layout: str, pixels: str) -> str:
    """The layout of frames in these pixels, given that of the model: NTHWC for NCTHW, NHWC for NCHW."""
    return layout if pixels == "float" else layout.replace("C", "") + "C"


def to_rgba8(frames: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Frames (N, 3, T, H, W) to uint8 (N, T, H, W, 4); images (N, 3, H, W) to (N, H, W, 4)."""
    low, high = value_range
    scale, offset = _affine(value_range)
    levels = (frames.movedim(1, -1).clamp(low, high) * scale + offset).to(torch.uint8)
    return torch.cat([levels, torch.full_like(levels[..., :1], int(_LEVELS))], dim=-1)


def append_rgba8(module: fx.GraphModule, form: Form, value_range: tuple[float, float]) -> None:
    """Append the tail to a graph whose only output is frames, in place.

    The output becomes uint8 (1, T, H, W, 4), of images (1, H, W, 4); in the form `int32` a pixel is one value, and
    the last axis is gone.
    """
    graph = Graph(module)
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    (frames,) = output.args[0] if isinstance(output.args[0], tuple | list) else output.args
    low, high = value_range
    scale, offset = _affine(value_range)
    with graph.at(output):
        pictures = _pictures(graph, frames)
        y = graph.call(aten.clamp.default, pictures, low, high)
        y = graph.call(aten.mul.Tensor, y, graph.constant(torch.full((1, 1, 1, 1), scale)))
        y = graph.call(aten.add.Tensor, y, graph.constant(torch.full((1, 1, 1, 1), offset)))
        batch, _, *size = shape_of(frames)
        last = (_packed if form == "int32" else _interleaved)(graph, y, [batch, *size])
    output.args = ((last,),)
    apply(module, (cancel_layouts.REWRITE,))


def in_levels(tolerance: Tolerance, value_range: tuple[float, float]) -> Tolerance:
    """A tolerance of frames in their value range, as one of levels, [0, 255].

    Two values that are d levels apart differ by at most floor(d) + 1 after both were rounded. Of a mean squared
    error of m, rounding makes at most m + min(sqrt(m), 1/4): of a distance k + f, f being its fraction, the share
    f is k + 1 levels and the rest k, if no value lies nearer to an edge than others. Alpha, a quarter of all
    values, is exact.
    """
    scale, _ = _affine(value_range)
    largest = None if tolerance.max_abs is None else math.floor(tolerance.max_abs * scale) + 1.0
    lowest = None
    if tolerance.min_psnr_db is not None:
        squared = _LEVELS**2 / 10 ** (tolerance.min_psnr_db / 10)
        lowest = round(10 * math.log10(_LEVELS**2 / ((squared + min(math.sqrt(squared), 0.25)) * 0.75)), 1)
    reason = f"{tolerance.reason}; here in levels of 255, both sides rounded to whole ones"
    return replace(tolerance, max_abs=largest, min_psnr_db=lowest, reason=reason)


def output_dtype(graph: fx.GraphModule, floats: str) -> str:
    """What a graph gives in numpy's words: `floats`, unless it ends in pixels."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    first = output.args[0][0] if isinstance(output.args[0], tuple | list) else output.args[0]
    return {torch.uint8: "uint8", torch.int32: "int32"}.get(dtype_of(first), floats)


def _affine(value_range: tuple[float, float]) -> tuple[float, float]:
    """From a value to a level plus the half that truncation takes."""
    low, high = value_range
    scale = _LEVELS / (high - low)
    return scale, 0.5 - low * scale


def _pictures(graph: Graph, frames: fx.Node) -> fx.Node:
    """Frames as pictures of rank 4: one under the other where the graph has them so, else one a frame."""
    shape = shape_of(frames)
    if len(shape) == 4:
        return frames
    _, channels, count, height, width = shape
    stacked = (1, channels, count * height, width)
    before = frames.args[0] if is_call(frames, *RESHAPES) else None
    if isinstance(before, fx.Node) and shape_of(before) == stacked:
        return graph.call(aten.reshape.default, frames, list(stacked))
    first = graph.call(aten.transpose.int, frames, 1, 2)
    return graph.call(aten.reshape.default, first, [count, channels, height, width])


def _interleaved(graph: Graph, levels: fx.Node, size: list[int]) -> fx.Node:
    """(P, 3, H, W) to uint8 (*size, 4). Alpha is padding: it needs no tensor of the picture's size.

    Only the cast comes after the reshape: it is all that stays outside of a delegate that has no bytes.
    """
    rgba = graph.call(aten.constant_pad_nd.default, levels, [0, 0, 0, 0, 0, 1], _LEVELS)
    rows = graph.call(aten.permute.default, rgba, [0, 2, 3, 1])
    rows = graph.call(aten.reshape.default, rows, [*size, 4])
    return graph.call(aten.to.dtype, rows, torch.uint8)


def _packed(graph: Graph, levels: fx.Node, size: list[int]) -> fx.Node:
    """(P, 3, H, W) to int32 `size`, R in the lowest byte and alpha in the highest."""
    whole = graph.call(aten.to.dtype, graph.call(aten.floor.default, levels), torch.int32)
    red, green, blue = (graph.call(aten.select.int, whole, 1, channel) for channel in range(3))
    packed = graph.call(aten.add.Tensor, red, graph.call(aten.mul.Tensor, green, 256))
    packed = graph.call(aten.add.Tensor, packed, graph.call(aten.mul.Tensor, blue, 65536))
    return graph.call(aten.reshape.default, graph.call(aten.add.Tensor, packed, -(1 << 24)), size)
