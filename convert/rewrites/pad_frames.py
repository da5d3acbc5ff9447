"""Constant padding of clips, at rank 4.

`REWRITE`  before   pad(x, (w, w', h, h', t, t'))                              x: NCTHW
           after    from_frames(pad(to_frames(x), (w, w', h, h', 0, 0, t, t')))

`STACKED`  before   pad(x, (w, w', 0, 0, t, t'))                               x: NCTHW
           after    from_stack(pad(to_stack(x), (w, w', t*H, t'*H)))

Causal convolutions that see zeros before the first frame are made of such padding.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx
from torch.nn import functional as F

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, shape_of
from .cases import of
from .frames import aten, batch_refusal, from_frames, to_frames
from .stacked import from_stack, to_stack


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    found = is_call(node, aten.pad.default, aten.constant_pad_nd.default) and len(shape_of(node)) == 5
    return (node,) if found else None


def _pads(node: fx.Node) -> list[int]:
    """Before and after each axis, the last axis first: width, height, time, channels, batch."""
    given = list(argument(node, 1))
    return given + [0] * (10 - len(given))


def _value(node: fx.Node) -> float:
    return argument(node, 3 if is_call(node, aten.pad.default) else 2) or 0


def _check(match: tuple[fx.Node, ...]) -> str | None:
    (node,) = match
    if is_call(node, aten.pad.default) and argument(node, 2) != "constant":
        return f"padding by {argument(node, 2)!r}, not by a constant"
    if any(_pads(node)[8:]):
        return "pads the batch"
    return batch_refusal(node.args[0])


def _check_stacked(match: tuple[fx.Node, ...]) -> str | None:
    pads = _pads(match[0])
    if reason := _check(match):
        return reason
    if any(pads[2:4]):
        return f"padding of {pads[2:4]} rows: stacked frames have no height of their own"
    if any(pads[6:8]):
        return "pads channels"
    return None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    width, height, time, channels = (_pads(node)[i : i + 2] for i in (0, 2, 4, 6))
    frames = to_frames(graph, node.args[0])
    pads = [*width, *height, *channels, *time]
    return from_frames(graph, graph.call(aten.constant_pad_nd.default, frames, pads, _value(node)))


def _replace_stacked(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (node,) = match
    rows = shape_of(node)[3]
    pads = _pads(node)
    stack = to_stack(graph, node.args[0])
    padded = graph.call(
        aten.constant_pad_nd.default, stack, [*pads[:2], pads[4] * rows, pads[5] * rows], _value(node)
    )
    return from_stack(graph, padded, shape_of(node)[2])


def _padded(*pads: int, **options):
    return of(lambda x: F.pad(x, pads, **options))


_BATCH = Case("batch of two", _padded(0, 0, 0, 0, 2, 0), (2, 4, 3, 2, 5), 0, "batch of 2")
_REPLICATED = Case(
    "replicated", _padded(1, 1, 1, 1, 1, 1, mode="replicate"), (1, 4, 3, 2, 5), 0, "not by a constant"
)
_PICTURE = Case("one picture", _padded(1, 1), (1, 4, 2, 5), 0)

REWRITE = Rewrite(
    name="pad_frames",
    why=(
        "At rank 5, padding leaves two changes of layout around it; frames-first, frames of zeros are rows of a "
        "batch."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("before the first frame", _padded(0, 0, 0, 0, 2, 0), (1, 4, 3, 2, 5)),
        Case("all around", _padded(1, 2, 0, 3, 1, 1), (1, 4, 3, 2, 5)),
        Case("by ones", _padded(0, 0, 0, 0, 1, 0, value=1.0), (1, 4, 3, 2, 5)),
        Case("channels", _padded(0, 0, 0, 0, 0, 0, 2, 1), (1, 4, 3, 2, 5)),
    ),
    near_misses=(_BATCH, _REPLICATED, _PICTURE),
)

STACKED = replace(
    REWRITE,
    name="pad_frames_stacked",
    why=(
        "Vulkan takes rank 4 at most. In stacked frames, frames of zeros are rows of zeros over the picture: no "
        "change of layout."
    ),
    check=_check_stacked,
    replace=_replace_stacked,
    cases=(
        Case("before the first frame", _padded(0, 0, 0, 0, 2, 0), (1, 4, 3, 2, 5)),
        Case("time and width", _padded(1, 2, 0, 0, 1, 1), (1, 4, 3, 2, 5)),
    ),
    near_misses=(
        _BATCH,
        _REPLICATED,
        _PICTURE,
        Case("rows", _padded(0, 0, 1, 1), (1, 4, 3, 2, 5), 0, "no height of their own"),
    ),
)
