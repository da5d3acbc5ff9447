"""Rank-5 ops that only pass over a clip, in the frames-first layout.

    before   op(x, ...)                                  x: NCTHW
    after    from_frames(op(to_frames(x), ...))          axes renumbered

Elementwise ops, concatenation, slicing and means over channels. What remains between them are
`to_frames(from_frames(x))` pairs, which `cancel_layouts` removes.
"""

from __future__ import annotations

from torch import fx

from ..graph.limits import axes
from ..graph.ops import ELEMENTWISE, REDUCTIONS
from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, is_constant, shape_of
from .cases import of
from .frames import aten, batch_refusal, frame_axis, from_frames, is_clip, to_frames

ALONG = (aten.slice.Tensor, *REDUCTIONS)


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    known = is_call(node, *ELEMENTWISE, *ALONG, aten.cat.default)
    return (node,) if known and len(shape_of(node)) == 5 else None


def _clips(node: fx.Node) -> list[fx.Node]:
    return [x for x in node.all_input_nodes if is_clip(x) and not is_constant(x)]


def axes_of(node: fx.Node) -> list[int]:
    """Axes that the op names."""
    if is_call(node, *REDUCTIONS):
        return axes(node)
    return [argument(node, 1) % 5] if is_call(node, aten.slice.Tensor, aten.cat.default) else []


def _check(match: tuple[fx.Node, ...]) -> str | None:
    (node,) = match
    if 0 in axes_of(node):
        return "works along the batch axis, which frames-first does not have"
    if is_call(node, *ALONG) and not is_call(node, aten.slice.Tensor) and not argument(node, 2):
        return "keepdim is False"
    others = [x for x in node.all_input_nodes if not is_clip(x)]
    if others:
        return f"{others[0].name} is of rank {len(shape_of(others[0]))} and broadcasts"
    for x in node.all_input_nodes:
        if reason := batch_refusal(x):
            return reason
    return None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match

    def frames(x: object) -> object:
        if is_constant(x):  # (1, C, 1, 1, 1) scales and offsets
            return graph.constant(graph.value(x).transpose(1, 2).flatten(0, 1))
        return to_frames(graph, x) if is_clip(x) else x

    args, keywords = fx.map_arg((list(node.args), node.kwargs), frames)
    args = list(args)
    if is_call(node, aten.slice.Tensor, aten.cat.default):
        args[1:2] = [frame_axis(argument(node, 1))]
    elif is_call(node, *REDUCTIONS):
        args[1] = [frame_axis(axis) for axis in axes(node)]
    return from_frames(graph, graph.call(node.target, *args, **keywords))


def _replicate(x):
    import torch

    return torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)


REWRITE = Rewrite(
    name="batch_in_time",
    why=(
        "Vulkan's partitioner refuses every rank-5 op ('op does not support high dim tensors') and Core ML's "
        "neural engine works on rank 4; leaving one op at rank 5 puts two transposes around it."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    keeps_keywords=True,
    cases=(
        Case("activation", of(lambda x: x.relu()), (1, 4, 3, 2, 5)),
        Case("replicated border frames", of(_replicate), (1, 4, 3, 2, 5), 3),
        Case("drop a frame", of(lambda x: x[:, :, 1:]), (1, 4, 3, 2, 5)),
        Case("root mean square", of(lambda x: x * (x.pow(2).mean(1, True) + 1e-8).rsqrt()), (1, 4, 3, 2, 5), 5),
        Case("crop in space", of(lambda x: x[..., 1:3]), (1, 4, 3, 2, 5)),
        Case("soft and hard clamp", of(lambda x: (x / 3).tanh().clamp(0, 1)), (1, 4, 3, 2, 5), 3),
        Case("maximum over channels", of(lambda x: x.amax(1, True)), (1, 4, 3, 2, 5)),
    ),
    near_misses=(
        Case("frames already a batch", of(lambda x: x.relu()), (3, 4, 2, 5), 0),
        Case("batch of two", of(lambda x: x.relu()), (2, 4, 3, 2, 5), 0, "batch of 2"),
        Case("along the batch", of(lambda x: x[1:]), (2, 4, 3, 2, 5), 0, "along the batch axis"),
        Case("broadcast of a vector", of(lambda x: x + x[0, 0, 0, 0]), (1, 4, 3, 2, 5), 0, "rank 1"),
    ),
)
