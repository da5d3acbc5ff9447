"""Rank-5 ops that only pass over a clip, in the stacked layout.

    before   op(x, ...)                                  x: NCTHW
    after    from_stack(op(to_stack(x), ...))            channels and width renumbered, frames as spans of rows

Elementwise ops, concatenation and slicing of channels, frames or columns, means over channels. What remains between
them are reshapes, which `cancel_layouts` removes.
"""

from __future__ import annotations

import math

from torch import fx

from ..graph.ops import ELEMENTWISE, REDUCTIONS
from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, is_constant, shape_of
from .batch_in_time import ALONG, axes_of
from .cases import of
from .frames import aten, batch_refusal, is_clip
from .stacked import from_stack, to_stack

# NCTHW axis -> axis of the stack. Height has none of its own.
_STACK_AXIS = {1: 1, 2: 2, 4: 3}


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    known = is_call(node, *ELEMENTWISE, *ALONG, aten.cat.default)
    return (node,) if known and len(shape_of(node)) == 5 else None


def _is_scale(node: fx.Node) -> bool:
    """Whether a constant has one value per channel or one in all."""
    return is_constant(node) and len(shape_of(node)) == 5 and math.prod(shape_of(node)) == shape_of(node)[1]


def _check(match: tuple[fx.Node, ...]) -> str | None:
    (node,) = match
    reduces = is_call(node, *REDUCTIONS)
    allowed = {1} if reduces else set(_STACK_AXIS)
    if set(axes_of(node)) - allowed:
        return f"works along axis {axes_of(node)}; on stacked frames it may be {sorted(allowed)}"
    if reduces and not argument(node, 2):
        return "keepdim is False"
    if is_call(node, aten.slice.Tensor) and argument(node, 4) != 1:
        return f"slice with step {argument(node, 4)}"
    for x in node.all_input_nodes:
        if _is_scale(x):
            continue
        if not is_clip(x):
            return f"{x.name} is of rank {len(shape_of(x))} and broadcasts"
        if reason := batch_refusal(x):
            return reason
        if is_call(node, *ELEMENTWISE) and shape_of(x)[2:4] != shape_of(node)[2:4]:
            return f"{x.name} {shape_of(x)} broadcasts over frames or rows"
    return None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    height = shape_of(node)[3]

    def stack(x: fx.Node) -> fx.Node:
        if _is_scale(x):
            return graph.constant(graph.value(x).squeeze(2))
        return to_stack(graph, x)

    args, keywords = fx.map_arg((list(node.args), node.kwargs), stack)
    args = list(args)
    if is_call(node, aten.slice.Tensor, aten.cat.default):
        (axis,) = axes_of(node)
        args[1:2] = [_STACK_AXIS[axis]]
        if is_call(node, aten.slice.Tensor) and axis == 2:
            first, last, _ = slice(argument(node, 2), argument(node, 3)).indices(shape_of(node.args[0])[2])
            args[2:4] = [first * height, last * height]
    return from_stack(graph, graph.call(node.target, *args, **keywords), shape_of(node)[2])


def _replicate(x):
    import torch

    return torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)


REWRITE = Rewrite(
    name="stack_frames",
    why=(
        "ExecuTorch's Vulkan delegate refuses activations and concatenations of rank 5 ('op does not support high "
        "dim tensors'), and between convolutions of stacked frames a change of layout would be a copy of the clip."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    keeps_keywords=True,
    cases=(
        Case("activation", of(lambda x: x.relu()), (1, 4, 3, 2, 5)),
        Case("replicated border frames", of(_replicate), (1, 4, 3, 2, 5), 3),
        Case("drop a frame", of(lambda x: x[:, :, 1:]), (1, 4, 3, 2, 5)),
        Case("drop the last frame", of(lambda x: x[:, :, :-1]), (1, 4, 3, 2, 5)),
        Case("root mean square", of(lambda x: x * (x.pow(2).mean(1, True) + 1e-8).rsqrt()), (1, 4, 3, 2, 5), 5),
        Case("crop in width", of(lambda x: x[..., 1:3]), (1, 4, 3, 2, 5)),
        Case("some channels", of(lambda x: x[:, 1:3]), (1, 4, 3, 2, 5)),
    ),
    near_misses=(
        Case("one picture", of(lambda x: x.relu()), (1, 4, 2, 5), 0),
        Case("batch of two", of(lambda x: x.relu()), (2, 4, 3, 2, 5), 0, "batch of 2"),
        Case("crop in height", of(lambda x: x[..., 1:2, :]), (1, 4, 3, 2, 5), 0, "along axis [3]"),
        Case("every other frame", of(lambda x: x[:, :, ::2]), (1, 4, 3, 2, 5), 0, "step 2"),
        Case("mean over time", of(lambda x: x.mean(2, True)), (1, 4, 3, 2, 5), 0, "along axis [2]"),
        Case("a value per frame", of(lambda x: x + x.new_ones(1, 1, 3, 1, 1)), (1, 4, 3, 2, 5), 0, "over frames"),
        Case("broadcast of a vector", of(lambda x: x + x[0, 0, 0, 0]), (1, 4, 3, 2, 5), 0, "rank 1"),
    ),
)
