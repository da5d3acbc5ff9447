"""Padding of clips and pictures by copies of their borders, by concatenation.

    before   pad(x, (w, w', h, h', t, t'), "replicate")                               x: NCTHW or (N, C, H, W)
    after    x = cat([first column] * w + [x] + [last column] * w')
             x = cat([first row] * h + [x] + [last row] * h')
             cat([first frame] * t + [x] + [last frame] * t')

Time comes last: rewrites of convolutions look through copied frames. Columns and rows of clips, at the clip's own
rank 5, are `batch_in_time`'s; `STACKED` writes rows with channels and frames as one axis, which moves nothing.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx
from torch.nn import functional as F

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, shape_of
from .cases import of
from .frames import aten


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    found = is_call(node, aten.pad.default) and argument(node, 2) == "replicate"
    return (node,) if found else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    pads = argument(match[0], 1)
    return None if min(pads) >= 0 else f"padding of {list(pads)} crops"


def _along(graph: Graph, x: fx.Node, axis: int, before: int, after: int) -> fx.Node:
    last = shape_of(x)[axis]
    parts = [x]
    if before:
        parts = [graph.call(aten.slice.Tensor, x, axis, 0, 1)] * before + parts
    if after:
        parts = parts + [graph.call(aten.slice.Tensor, x, axis, last - 1, last)] * after
    return x if len(parts) == 1 else graph.call(aten.cat.default, parts, axis)


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    x, pads = node.args[0], list(argument(node, 1))
    for place in range(len(pads) // 2):
        x = _along(graph, x, len(shape_of(x)) - 1 - place, *pads[2 * place : 2 * place + 2])
    return x


def _replace_stacked(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    x, pads = node.args[0], list(argument(node, 1))
    if len(shape_of(x)) != 5:
        return _replace(graph, match)
    n, c, t, h, w = shape_of(x)
    pads += [0] * (6 - len(pads))
    x = graph.call(aten.reshape.default, x, [n, c * t, h, w])
    x = _along(graph, _along(graph, x, 3, *pads[:2]), 2, *pads[2:4])
    x = graph.call(aten.reshape.default, x, [n, c, t, *shape_of(x)[2:]])
    return _along(graph, x, 2, *pads[4:])


def _pad(*pads: int, mode: str = "replicate"):
    return of(lambda x: F.pad(x, pads, mode=mode))


REWRITE = Rewrite(
    name="replicate_pad",
    why=(
        "XNNPACK and Vulkan pad by a constant only, and nothing pads clips of rank 5; causal convolutions of "
        "HunyuanVideo's kind repeat the first frame before the clip."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("causal clip", _pad(1, 1, 1, 1, 2, 0), (1, 4, 3, 2, 5)),
        Case("all sides differ", _pad(1, 0, 2, 1, 0, 3), (1, 4, 3, 2, 5)),
        Case("picture", _pad(1, 1, 1, 1), (2, 4, 2, 5)),
        Case("one frame", _pad(0, 0, 0, 0, 2, 0), (1, 4, 1, 2, 5)),
    ),
    near_misses=(
        Case("zeros", _pad(1, 1, 1, 1, 1, 1, mode="constant"), (1, 4, 3, 2, 5), 0),
        Case("reflected", _pad(1, 1, 1, 1, mode="reflect"), (2, 4, 3, 5), 0),
    ),
)

STACKED = replace(REWRITE, name="replicate_pad_stacked", replace=_replace_stacked)
