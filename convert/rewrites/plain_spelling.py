"""Ops that PyTorch can spell in several ways, in the spelling that the other rewrites and the delegates know.

unsqueeze, squeeze, flatten, unflatten, view                    ->  reshape
select(x, axis, i)                                              ->  reshape(slice(x, axis, i, i + 1))
an element of split, chunk or unbind                            ->  slice, reshaped for unbind
stack                                                           ->  cat of reshapes
repeat, repeat_interleave of an axis                            ->  cat
cat([zeros, x], axis)                                           ->  pad(x)
upsample_nearest_exact2d by whole factors                       ->  upsample_nearest2d, which is the same there
permute that swaps two axes                                     ->  transpose
clone, contiguous, alias, a cast or an expansion that changes nothing, dropout in eval mode   ->  x
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..graph.ops import BINARY
from ..graph.rewrite import Case, Graph, Rewrite, argument, dtype_of, is_call, is_constant, shape_of
from .cases import of
from .frames import aten

_RESHAPES = (
    aten.flatten.using_ints,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.view.default,
)
# What they yield where they change neither shape nor dtype is what they are given.
_IDLE = (
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.dropout.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.repeat.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.type_as.default,
)
_PARTS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
_ZEROS = (aten.zeros_like.default, aten.new_zeros.default, aten.zeros.default)


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if is_call(node, *_RESHAPES, aten.select.int, aten.concatenate.default, aten.stack.default):
        return (node,)
    if is_call(node, *_IDLE) and _is_idle(node):
        return (node,)
    if is_call(node, aten._upsample_nearest_exact2d.vec):
        high, wide = (after % before for after, before in zip(shape_of(node)[2:], shape_of(node.args[0])[2:]))
        return None if high or wide else (node,)
    if is_call(node, aten.permute.default) and _swapped(node):
        return (node,)
    if is_call(node, aten.cat.default):
        zeros = is_call(node.args[0][0], *_ZEROS) and len(node.args[0]) > 1
        return (node,) if zeros or _filled(node) != list(node.args[0]) else None
    if is_call(node, aten.repeat.default) and len(argument(node, 1)) == len(shape_of(node.args[0])):
        return (node,) if all(shape_of(node)) else None
    if is_call(node, *BINARY) and any(_is_short(x, node) for x in node.args):
        return (node,)
    if is_call(node, aten.repeat_interleave.self_int) and argument(node, 2) is not None:
        return (node,)
    if node.op == "call_function" and node.target is operator.getitem and is_call(node.args[0], *_PARTS):
        return (node, node.args[0])
    return None


def _is_idle(node: fx.Node) -> bool:
    x = node.args[0]
    if is_call(node, aten.dropout.default) and argument(node, 2):
        return False
    return shape_of(node) == shape_of(x) and dtype_of(node) == dtype_of(x)


def _swapped(node: fx.Node) -> list[int]:
    """The two axes that a permutation swaps, or none."""
    moved = [axis for axis, source in enumerate(argument(node, 1)) if axis != source % len(shape_of(node))]
    return moved if len(moved) == 2 else []


def _is_short(value: object, node: fx.Node) -> bool:
    """Whether an operand is a weight of fewer axes than the result has."""
    return isinstance(value, fx.Node) and is_constant(value) and 0 < len(shape_of(value)) < len(shape_of(node))


def _lengthened(graph: Graph, weight: fx.Node, node: fx.Node) -> fx.Node:
    shape = shape_of(weight)
    return graph.constant(graph.value(weight).reshape([1] * (len(shape_of(node)) - len(shape)) + list(shape)))


def _filled(node: fx.Node) -> list[fx.Node]:
    """What a concatenation takes, without tensors that have no values; as it is where none has any."""
    return [part for part in node.args[0] if 0 not in shape_of(part)] or list(node.args[0])


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    node, *_ = match
    x = node.args[0]
    if node.target is operator.getitem:
        return _part(graph, node, match[1])
    if is_call(node, *_RESHAPES):
        return graph.call(aten.reshape.default, x, list(shape_of(node)))
    if is_call(node, aten.select.int):
        axis, index = argument(node, 1) % len(shape_of(x)), argument(node, 2)
        index %= shape_of(x)[axis]
        return _reshaped(graph, node, graph.call(aten.slice.Tensor, x, axis, index, index + 1))
    if is_call(node, aten.stack.default):
        axis = (argument(node, 1) or 0) % len(shape_of(node))
        shape = list(shape_of(node))
        shape[axis] = 1
        return graph.call(aten.cat.default, [graph.call(aten.reshape.default, p, shape) for p in x], axis)
    if is_call(node, aten.concatenate.default):
        return graph.call(aten.cat.default, list(x), argument(node, 1) or 0)
    if is_call(node, *_IDLE) and _is_idle(node):
        return x
    if is_call(node, aten._upsample_nearest_exact2d.vec):
        return graph.call(aten.upsample_nearest2d.vec, *node.args, **node.kwargs)
    if is_call(node, aten.permute.default):
        return graph.call(aten.transpose.int, x, *_swapped(node))
    if is_call(node, *BINARY):
        args = [_lengthened(graph, arg, node) if _is_short(arg, node) else arg for arg in node.args]
        return graph.call(node.target, *args, **node.kwargs)
    if is_call(node, aten.cat.default):
        filled = _filled(node)
        if filled == list(x):
            return _padded(graph, node)
        return filled[0] if len(filled) == 1 else graph.call(aten.cat.default, filled, argument(node, 1) or 0)
    if is_call(node, aten.repeat.default):
        for axis, times in enumerate(argument(node, 1)):
            x = x if times == 1 else graph.call(aten.cat.default, [x] * times, axis)
        return x
    times, axis = argument(node, 1), argument(node, 2) % len(shape_of(x))
    shape = shape_of(x)
    x = graph.call(aten.reshape.default, x, [math.prod(shape[: axis + 1]), 1, math.prod(shape[axis + 1 :])])
    return _reshaped(graph, node, graph.call(aten.cat.default, [x] * times, 1))


def _reshaped(graph: Graph, node: fx.Node, x: fx.Node) -> fx.Node:
    return graph.call(aten.reshape.default, x, list(shape_of(node)))


def _part(graph: Graph, node: fx.Node, parts: fx.Node) -> fx.Node:
    """One element of what a splitting op yields."""
    x, index = parts.args[0], node.args[1]
    place = 1 if is_call(parts, aten.unbind.int) else 2
    axis = (argument(parts, place) or 0) % len(shape_of(x))
    sizes = [1 if is_call(parts, aten.unbind.int) else part.shape[axis] for part in parts.meta["val"]]
    start = sum(sizes[:index])
    part = graph.call(aten.slice.Tensor, x, axis, start, start + sizes[index])
    return _reshaped(graph, node, part) if is_call(parts, aten.unbind.int) else part


def _padded(graph: Graph, node: fx.Node) -> fx.Node:
    parts: Any = node.args[0]
    zeros, *rest = parts
    axis = (argument(node, 1) or 0) % len(shape_of(node))
    x = rest[0] if len(rest) == 1 else graph.call(aten.cat.default, rest, axis)
    behind = len(shape_of(node)) - 1 - axis
    return graph.call(aten.constant_pad_nd.default, x, [0, 0] * behind + [shape_of(zeros)[axis], 0], 0)


def _second_half(x: Tensor) -> Tensor:
    return x.chunk(2, 1)[1].relu()


REWRITE = Rewrite(
    name="plain_spelling",
    why=(
        "Each other rewrite looks for one spelling, and delegates lack some: XNNPACK has neither select nor stack, "
        "repeat nor expand, and Vulkan's splits are of rank 4."
    ),
    match=_match,
    check=lambda match: None,
    replace=_replace,
    cases=(
        Case("the last frame", of(lambda x: x[:, :, -1].unsqueeze(2)), (1, 4, 3, 2, 5), 2),
        Case("half of the channels", of(_second_half), (1, 4, 3, 2, 5)),
        Case("each frame by itself", of(lambda x: x.unbind(2)[1]), (1, 4, 3, 2, 5)),
        Case("sizes given", of(lambda x: x.split((1, 2), 2)[1] + 1), (1, 4, 3, 2, 5)),
        Case("stacked", of(lambda x: torch.stack((x, x + 1), 3)), (1, 4, 3, 2, 5)),
        Case("repeated frame", of(lambda x: torch.cat([x[:, :, :1].repeat(1, 1, 2, 1, 1), x], 2)), (1, 4, 3, 2, 5)),
        Case("repeated channels", of(lambda x: x.repeat_interleave(2, 1)), (1, 4, 3, 2, 5)),
        Case("zeros before", of(lambda x: torch.cat([torch.zeros_like(x), x], 2)), (1, 4, 3, 2, 5)),
        Case(
            "no frames before", of(lambda x: torch.cat([x[:, :, :1].repeat(1, 1, 0, 1, 1), x], 2)), (1, 4, 3, 2, 5)
        ),
        Case("swap", of(lambda x: x.permute(0, 2, 1, 3, 4) + 1), (1, 4, 3, 2, 5)),
        Case("copy", of(lambda x: x.clone() + 1), (1, 4, 3, 2, 5)),
        Case("nearest-exact", of(lambda x: F.interpolate(x, scale_factor=3.0, mode="nearest-exact")), (3, 4, 2, 5)),
        Case("flat", of(lambda x: x.flatten(1, 2).unflatten(1, (2, 6))), (1, 4, 3, 2, 5), 2),
    ),
    # Memory formats, which a captured graph does not need; those of arithmetic are handed on.
    keeps_keywords=True,
    near_misses=(
        Case(
            "nearest-exact by halves",
            of(lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact")),
            (3, 4, 2, 4),
            0,
        ),
        Case("a real permutation", of(lambda x: x.permute(0, 2, 3, 4, 1)), (1, 4, 3, 2, 5), 0),
        Case("a real expansion", of(lambda x: x.expand(3, -1, -1)), (1, 4, 3), 0),
        Case("zeros by a constant pad", of(lambda x: F.pad(x, (1, 0))), (1, 4, 3), 0),
        Case("repeated into a new axis", of(lambda x: x.repeat(2, 1, 1, 1)), (1, 4, 3), 0),
    ),
)
