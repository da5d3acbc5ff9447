"""Group norm of clips and pictures, from means over each channel.

    before   group_norm(x, G, weight, bias, eps)                       x: (N, C, H, W), NCTHW or (N, C, L)
    after    d = x - mean(x, group)
             d * rsqrt(mean(d * d, group) + eps) * weight + bias
    `SAFE`   z = d / m with m = 16 * (mean(|d|, group) + sqrt(eps))
             z * rsqrt(mean(z * z, group) + (sqrt(eps) / m)^2) * weight + bias

A mean over a group is the mean of its channels' means over height and width: the large tensor keeps its layout, and
only one value per channel is regrouped. Clips are taken frames-first, or (`STACKED`) as one tall picture.

Dividing by any positive m changes nothing in real arithmetic. mean(z * z) is at least 1/256 where d is not small
against sqrt(eps), and z * z is finite in fp16 for values of up to 4000 times their group's mean magnitude.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import fx, nn

from ..graph.rewrite import Case, Graph, Rewrite, argument, dtype_of, is_call, is_constant, shape_of
from .frames import aten, batch_refusal, from_frames, is_clip, to_frames
from .stacked import from_stack, to_stack


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    return (node,) if is_call(node, aten.group_norm.default) else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    (node,) = match
    x = node.args[0]
    if len(shape_of(x)) not in (3, 4, 5):
        return f"a tensor of rank {len(shape_of(x))}"
    if any(p is not None and not is_constant(p) for p in (argument(node, 2), argument(node, 3))):
        return "scale or offset is computed, not a constant"
    if argument(node, 4) <= 0:
        return f"epsilon {argument(node, 4)} is not positive"
    return batch_refusal(x) if is_clip(x) else None


def _check_clip(match: tuple[fx.Node, ...]) -> str | None:
    if not is_clip(match[0].args[0]):
        return "no clip: the runtime's own norm is as fast, and holds no more"
    return _check(match)


class _Groups:
    """Means of one norm's groups, for a tensor (N, C, H, W); in a clip, N counts the frames of one."""

    def __init__(self, graph: Graph, x: fx.Node, groups: int, clip: bool) -> None:
        self.graph, self.groups, self.clip = graph, groups, clip
        self.batch, self.channels = shape_of(x)[:2]
        self.like = x

    def number(self, *shape: int, value: float) -> fx.Node:
        # A tensor of the clip's dtype: executorch would cast a bare number at run time, outside the delegate.
        return self.graph.constant(torch.full(shape, value, dtype=dtype_of(self.like)))

    def mean(self, x: fx.Node) -> fx.Node:
        """(N, G, 1, 1), of a clip (1, G, 1, 1)."""
        call = self.graph.call
        each = call(aten.mean.dim, x, [2, 3], True)
        size = self.channels // self.groups
        if self.clip and self.batch > 1:
            each = call(aten.transpose.int, each, 0, 1)
            shape = [1, self.groups, size, self.batch]
        else:
            shape = [self.batch, self.groups, size, 1]
        return call(aten.mean.dim, call(aten.reshape.default, each, shape), [2, 3], True)

    def spread(self, x: fx.Node) -> fx.Node:
        """A value per group (N, G, 1, 1), as one per channel (N, C, 1, 1)."""
        size = self.channels // self.groups
        if size > 1:
            zeros = self.number(1, self.groups, size, 1, value=0.0)
            x = self.graph.call(aten.add.Tensor, x, zeros)
        return self.graph.call(aten.reshape.default, x, [shape_of(x)[0], self.channels, 1, 1])


def _norm(graph: Graph, x: fx.Node, node: fx.Node, clip: bool, safe: bool) -> fx.Node:
    """The norm of (N, C, H, W)."""
    call = graph.call
    groups = _Groups(graph, x, argument(node, 1), clip)
    eps = argument(node, 4)
    centred = call(aten.sub.Tensor, x, groups.spread(groups.mean(x)))
    floor = groups.number(1, 1, 1, 1, value=eps)
    if safe:
        root = groups.number(1, 1, 1, 1, value=math.sqrt(eps))
        size = call(aten.add.Tensor, groups.mean(call(aten.abs.default, centred)), root)
        size = call(aten.mul.Tensor, size, groups.number(1, 1, 1, 1, value=16.0))
        ratio = call(aten.div.Tensor, root, size)
        floor = call(aten.mul.Tensor, ratio, ratio)
        centred = call(aten.div.Tensor, centred, groups.spread(size))
    variance = groups.mean(call(aten.mul.Tensor, centred, centred))
    scale = groups.spread(call(aten.rsqrt.default, call(aten.add.Tensor, variance, floor)))
    weight, bias = argument(node, 2), argument(node, 3)
    if weight is not None:
        scale = call(aten.mul.Tensor, scale, graph.constant(graph.value(weight).reshape(1, -1, 1, 1)))
    y = call(aten.mul.Tensor, centred, scale)
    return y if bias is None else call(aten.add.Tensor, y, graph.constant(graph.value(bias).reshape(1, -1, 1, 1)))


def _replacing(safe: bool, stacked: bool = False):
    def replacement(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
        (node,) = match
        x = node.args[0]
        shape = shape_of(x)
        if len(shape) == 5 and stacked:
            return from_stack(graph, _norm(graph, to_stack(graph, x), node, False, safe), shape[2])
        if len(shape) == 5:
            return from_frames(graph, _norm(graph, to_frames(graph, x), node, True, safe))
        if len(shape) == 4:
            return _norm(graph, x, node, False, safe)
        y = _norm(graph, graph.call(aten.reshape.default, x, [*shape, 1]), node, False, safe)
        return graph.call(aten.reshape.default, y, list(shape))

    return replacement


def _module(channels: int, groups: int, **options):
    def build() -> nn.Module:
        norm = nn.GroupNorm(groups, channels, **options)
        if norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        return norm

    return build


PLAIN = Rewrite(
    name="group_norm",
    why=(
        "Neither XNNPACK nor Vulkan takes a group norm of a clip, and one outside splits the delegate; Core ML has "
        "none, and coremltools writes it at rank 5 and over."
    ),
    match=_match,
    check=_check,
    replace=_replacing(safe=False),
    cases=(
        Case("clip", _module(6, 3), (1, 6, 3, 4, 5)),
        Case("a group per channel", _module(4, 4), (1, 4, 3, 4, 5)),
        Case("one group, no affine part", _module(4, 1, affine=False), (1, 4, 2, 4, 5)),
        Case("pictures", _module(6, 2, eps=1e-6), (2, 6, 4, 5)),
        Case("places", _module(6, 2), (2, 6, 7)),
    ),
    near_misses=(
        Case("batch of two clips", _module(6, 3), (2, 6, 3, 4, 5), 0, "batch of 2"),
        Case("no places", _module(6, 3), (2, 6), 0, "rank 2"),
        Case("no epsilon", _module(6, 3, eps=0.0), (2, 6, 4, 5), 0, "epsilon 0"),
    ),
)

# Of pictures, onnxruntime's own norm took 4 % less time of the whole of Stable Diffusion's decoder.
CLIPS = replace(
    PLAIN,
    name="group_norm_clips",
    check=_check_clip,
    cases=PLAIN.cases[:3],
    near_misses=(*PLAIN.near_misses[:1], Case("pictures", _module(6, 2), (2, 6, 4, 5), 0, "no clip")),
)

SAFE = replace(
    PLAIN,
    name="safe_group_norm",
    why="In fp16, d * d overflows from |d| = 256 on, and the usual epsilon of 1e-6 is half rounded away.",
    replace=_replacing(safe=True),
)

STACKED = replace(PLAIN, name="group_norm_stacked", replace=_replacing(safe=False, stacked=True))
SAFE_STACKED = replace(SAFE, name="safe_group_norm_stacked", replace=_replacing(safe=True, stacked=True))
