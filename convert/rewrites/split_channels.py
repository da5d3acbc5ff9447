"""Frames made of halves (or more parts) of the channels, written as selections that are stacked behind time.

    before   r = reshape(x, (1, a, C, T, H, W))                                      x: (1, a*C, T, H, W)
             reshape(stack([r[:, 0], r[:, 1], ...], 3), (1, C, T*a, H, W))
    after    transpose(x, 1, 2) -> reshape (1, T*a, C, H, W) -> transpose(1, 2)

Frames-first this is one reshape, which `cancel_layouts` leaves of it; `split_frames_stacked` has it for stacks.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, shape_of
from .cases import of
from .frames import aten, batch_refusal

_RESHAPES = (aten.reshape.default, aten.view.default)


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not is_call(node, *_RESHAPES) or len(shape_of(node)) != 5 or not is_call(node.args[0], aten.stack.default):
        return None
    stack = node.args[0]
    parts = stack.args[0]
    if len(shape_of(stack)) != 6 or not all(is_call(part, aten.select.int) for part in parts):
        return None
    split = parts[0].args[0]
    if any(part.args[0] is not split for part in parts) or not is_call(split, *_RESHAPES):
        return None
    return (node, stack, split) if len(shape_of(split)) == 6 and len(shape_of(split.args[0])) == 5 else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    node, stack, split = match
    x = split.args[0]
    n, c, t, h, w = shape_of(x)
    parts = stack.args[0]
    a = len(parts)
    if shape_of(split) != (n, a, c // a, t, h, w) or [(argument(p, 1), argument(p, 2)) for p in parts] != [
        (1, i) for i in range(a)
    ]:
        return f"splits {shape_of(x)} into {shape_of(split)}, not all parts of the channels in order"
    if argument(stack, 1) % 6 != 3 or shape_of(node) != (n, c // a, t * a, h, w):
        return f"stacks along axis {argument(stack, 1)} to {shape_of(node)}, not behind time"
    return batch_refusal(x)


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    node, _, split = match
    _, c, t, h, w = shape_of(node)
    y = graph.call(aten.transpose.int, split.args[0], 1, 2)
    y = graph.call(aten.reshape.default, y, [1, t, c, h, w])
    return graph.call(aten.transpose.int, y, 1, 2)


def _split(x: Tensor, axis: int = 3, parts: int = 2) -> Tensor:
    n, c, t, h, w = x.shape
    x = x.reshape(n, parts, c // parts, t, h, w)
    x = torch.stack([x[:, i] for i in range(parts)], axis)
    return x.reshape(n, c // parts, t * parts, h, w)


REWRITE = Rewrite(
    name="split_channels",
    why="Wan's decoders make two frames of one like this: at rank 6, which neither Core ML nor Vulkan takes.",
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("halves", of(_split), (1, 8, 3, 2, 5)),
        Case("thirds of one frame", of(lambda x: _split(x, parts=3)), (1, 6, 1, 2, 5)),
    ),
    near_misses=(
        Case("before time", of(lambda x: _split(x, axis=2)), (1, 8, 3, 2, 5), 0, "not behind time"),
        Case("batch of two", of(_split), (2, 8, 3, 2, 5), 0, "batch of 2"),
        Case(
            "one tensor with another",
            of(lambda x: torch.stack([x, x + 1], 3).reshape(1, 4, 6, 2, 5)),
            (1, 4, 3, 2, 5),
            0,
        ),
    ),
)
