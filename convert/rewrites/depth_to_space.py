"""Frames and pixels made of channels, written as a reshape, a permutation and a reshape of rank 6 to 8.

    before   r = reshape(x, (1, factors of the channels in any order, T, H, W))                        x: NCTHW
             p = permute(r) to (1, c, T, a, H, b, W, b)                 any of a and b may be missing
             reshape(p, (1, c, T*a, H*b, W*b))
    after    y = x with its channels in the order (a, c, b, b)
             y = transpose(y, 1, 2) -> reshape (1, T*a, c*b*b, H, W) -> pixel_shuffle(b) -> transpose(1, 2)

Channels of a convolution that nothing else reads are put in order in its weights, which costs nothing; other
channels by a permutation of rank 4 at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, is_constant, shape_of
from .cases import of
from .frames import aten, batch_refusal

_RESHAPES = (aten.reshape.default, aten.view.default, aten.flatten.using_ints)
_IDLE = (aten.contiguous.default, aten.clone.default)


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    """From the last reshape to the first; reshapes and copies may come in several steps."""
    if not is_call(node, *_RESHAPES) or len(shape_of(node)) != 5:
        return None
    chain = [node]
    while is_call(chain[-1].args[0], *_RESHAPES, *_IDLE):
        chain.append(chain[-1].args[0])
    permuted = chain[-1].args[0]
    if not is_call(permuted, aten.permute.default) or len(shape_of(permuted)) not in (6, 7, 8):
        return None
    split = permuted.args[0]
    if not is_call(split, *_RESHAPES) or len(shape_of(split.args[0])) != 5:
        return None
    return node, permuted, split


@dataclass(frozen=True)
class _Plan:
    """How channels become frames and pixels.

    Attributes:
        factors: of the channels, as they are split.
        order: of the factors, as (a, c, b, b).
        frames: a, out of one frame.
        pixels: b, out of one pixel, along each side.
    """

    factors: tuple[int, ...]
    order: tuple[int, ...]
    frames: int
    pixels: int


def _plan(match: tuple[fx.Node, ...]) -> _Plan | str:
    """The plan, or why the nodes are no such pattern."""
    joined, permuted, split = match
    n, c, t, h, w = shape_of(split.args[0])
    parts = shape_of(split)
    rank = len(parts)
    if parts[0] != n or parts[-3:] != (t, h, w) or math.prod(parts[1:-3]) != c:
        return f"splits {(n, c, t, h, w)} into {parts}, which are no factors of the channels"
    order = [axis % rank for axis in permuted.args[1]]
    where = {axis: order.index(axis) for axis in (0, rank - 3, rank - 2, rank - 1)}
    places = [where[0], where[rank - 3], where[rank - 2], where[rank - 1]]
    if places != sorted(places) or places[0] != 0:
        return f"permutes to {order}: frames, rows and columns change places"
    bounds = [*places, rank]
    kept, times, rows, columns = (order[bounds[i] + 1 : bounds[i + 1]] for i in range(4))
    sizes = [math.prod(parts[axis] for axis in group) for group in (kept, times, rows, columns)]
    channels, a, down, across = sizes
    if shape_of(joined) != (n, channels, t * a, h * down, w * across):
        return f"joins to {shape_of(joined)}, not to frames, rows and columns"
    if down != across:
        return f"makes {down} rows and {across} columns of one; a pixel shuffle makes as many of each"
    wanted = tuple(axis - 1 for axis in (*times, *kept, *rows, *columns))
    return _Plan(tuple(parts[1:-3]), wanted, a, down)


def _check(match: tuple[fx.Node, ...]) -> str | None:
    plan = _plan(match)
    return plan if isinstance(plan, str) else batch_refusal(match[2].args[0])


def _reordered(graph: Graph, x: fx.Node, split: fx.Node, plan: _Plan) -> fx.Node:
    """x with the factors of its channels in the plan's order."""
    sizes = [(place, plan.factors[place]) for place in plan.order if plan.factors[place] > 1]
    if [place for place, _ in sizes] == sorted(place for place, _ in sizes):
        return x
    if is_call(x, aten.conv3d.default) and set(x.users) == {split} and is_constant(x.args[1]):
        weight, bias = graph.value(x.args[1]), argument(x, 2)
        if argument(x, 6) == 1 and (bias is None or is_constant(bias)):
            index = torch.arange(weight.shape[0]).reshape(plan.factors).permute(plan.order).flatten()
            new_bias = None if bias is None else graph.constant(graph.value(bias)[index])
            rest = [argument(x, i) for i in (3, 4, 5, 6)]
            return graph.call(x.target, x.args[0], graph.constant(weight[index]), new_bias, *rest)
    shape = shape_of(x)
    kept = [place for place, size in enumerate(plan.factors) if size > 1]
    y = graph.call(aten.reshape.default, x, [*(plan.factors[i] for i in kept), math.prod(shape[2:])])
    for before, first, second in _exchanges([kept.index(place) for place, _ in sizes]):
        sides = shape_of(y)
        axes = [math.prod(sides[:before]), math.prod(sides[before:first]), math.prod(sides[first:second])]
        swapped = [*sides[:before], *sides[first:second], *sides[before:first], *sides[second:]]
        y = graph.call(aten.reshape.default, y, [*axes, math.prod(sides[second:])])
        y = graph.call(aten.reshape.default, graph.call(aten.transpose.int, y, 1, 2), swapped)
    return graph.call(aten.reshape.default, y, list(shape))


def _exchanges(order: list[int]) -> list[tuple[int, int, int]]:
    """Exchanges of neighbouring spans that lead from 0, 1, ... to `order`: start, middle, end."""
    now, steps = list(range(len(order))), []
    for place, wanted in enumerate(order):
        at = now.index(wanted)
        if at == place:
            continue
        length = 1
        while (
            at + length < len(now) and now[at + length] == (order[place + length : place + length + 1] or [-1])[0]
        ):
            length += 1
        steps.append((place, at, at + length))
        now = [*now[:place], *now[at : at + length], *now[place:at], *now[at + length :]]
    return steps


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    split = match[2]
    plan = _plan(match)
    assert isinstance(plan, _Plan)
    x = _reordered(graph, split.args[0], split, plan)
    _, c, t, h, w = shape_of(x)
    y = graph.call(aten.transpose.int, x, 1, 2)
    y = graph.call(aten.reshape.default, y, [1, t * plan.frames, c // plan.frames, h, w])
    if plan.pixels > 1:
        y = graph.call(aten.pixel_shuffle.default, y, plan.pixels)
    return graph.call(aten.transpose.int, y, 1, 2)


def _ltx(a: int = 2, b: int = 2, order=(0, 1, 5, 2, 6, 3, 7, 4)):
    def shuffle(x: Tensor) -> Tensor:
        n, _, t, h, w = x.shape
        y = x.reshape(n, -1, a, b, b, t, h, w)
        return y.permute(order).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    return shuffle


def _wan(x: Tensor, b: int = 2) -> Tensor:
    n, c, t, h, w = x.shape
    y = x.view(n, c // (b * b), b, b, t, h, w).permute(0, 1, 4, 5, 3, 6, 2).contiguous()
    return y.view(n, c // (b * b), t, h * b, w * b)


class _Behind(nn.Module):
    """A shuffle of what a convolution makes."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 16, (1, 3, 3), padding=(0, 1, 1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


REWRITE = Rewrite(
    name="depth_to_space",
    why=(
        "A program of more than six axes does not load in XNNPACK (LTX's un-patchify has eight), Core ML takes "
        "five, Vulkan four."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("frames, rows and columns", of(_ltx()), (1, 16, 3, 2, 5)),
        Case("rows and columns, columns first", of(_ltx(1, 2, (0, 1, 5, 2, 6, 4, 7, 3))), (1, 8, 3, 2, 5)),
        Case("of rank 7", of(_wan), (1, 12, 3, 2, 5)),
        Case("behind a convolution", lambda: _Behind(_ltx()), (1, 4, 3, 2, 5)),
        Case("columns first, behind a convolution", lambda: _Behind(_wan), (1, 4, 3, 2, 5)),
    ),
    near_misses=(
        Case("batch of two", of(_ltx()), (2, 16, 3, 2, 5), 0, "batch of 2"),
        Case("space before time", of(_ltx(order=(0, 1, 6, 2, 5, 3, 7, 4))), (1, 16, 3, 3, 3), 0, "change places"),
        Case("frames alone", of(lambda x: x.reshape(1, 2, 2, 3, 10).permute(0, 1, 3, 2, 4)), (1, 4, 3, 2, 5), 0),
    ),
)
