"""Padding of frames that a 3D convolution meets, in the convolution's own terms.

`ZEROS`    before   conv3d(pad(x, (p, p, q, q, t, t'), zeros), no padding in space)           x: NCTHW
           after    conv3d(pad(x, (0, 0, 0, 0, t, t')), padding (0, q, p))

`CROPPED`  before   conv3d(x, W (O, I, K, k, kw), padding (0, 0, 0)), k and kw odd
           after    y = conv3d(x, W, padding (0, (k-1)/2, (kw-1)/2))
                    crop (k-1)/2 rows and (kw-1)/2 columns off each side of y, channels and frames as one axis
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, shape_of
from .cases import conv3d
from .frames import aten

_PADS = (aten.pad.default, aten.constant_pad_nd.default)


def _padding(conv: fx.Node) -> list[int] | None:
    given = argument(conv, 4)
    return None if isinstance(given, str) else list(given) * (1 if len(given) == 3 else 3)


def _match_zeros(node: fx.Node) -> tuple[fx.Node, ...] | None:
    found = is_call(node, aten.conv3d.default) and is_call(node.args[0], *_PADS)
    if not found or not any(argument(node.args[0], 1)[:4]):
        return None
    return (node, node.args[0])


def _check_zeros(match: tuple[fx.Node, ...]) -> str | None:
    conv, pad = match
    pads = list(argument(pad, 1))
    if is_call(pad, aten.pad.default) and argument(pad, 2) != "constant":
        return f"padding by {argument(pad, 2)!r}, not by zeros"
    if argument(pad, 3 if is_call(pad, aten.pad.default) else 2):
        return "padding by another number than zero"
    if _padding(conv) is None or any((_padding(conv) or [])[1:]):
        return "the convolution pads too"
    pads += [0] * (4 - len(pads))
    if pads[0] != pads[1] or pads[2] != pads[3] or min(pads[:4]) < 0:
        return f"pads {pads[:4]}: as much on both sides is needed"
    return None


def _replace_zeros(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    conv, pad = match
    pads = list(argument(pad, 1))
    pads += [0] * (4 - len(pads))
    x = pad.args[0]
    if any(pads[4:]):
        x = graph.call(aten.constant_pad_nd.default, x, [0, 0, 0, 0, *pads[4:]], 0)
    padding = [(_padding(conv) or [0])[0], pads[2], pads[0]]
    rest = [argument(conv, i) for i in (5, 6)]
    return graph.call(conv.target, x, conv.args[1], argument(conv, 2), argument(conv, 3), padding, *rest)


def _match_cropped(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not is_call(node, aten.conv3d.default):
        return None
    kernel = shape_of(node.args[1])[-2:]
    return (node,) if max(kernel) > 1 and _padding(node) == [0, 0, 0] else None


def _check_cropped(match: tuple[fx.Node, ...]) -> str | None:
    (conv,) = match
    kernel = shape_of(conv.args[1])[-2:]
    if any(size % 2 == 0 for size in kernel):
        return f"kernel {list(kernel)} is even"
    if set(argument(conv, 3)) | set(argument(conv, 5)) != {1}:
        return "stride or dilation"
    n = shape_of(conv)[0]
    return None if n == 1 else f"batch of {n}"


def _replace_cropped(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (conv,) = match
    rows, columns = (size // 2 for size in shape_of(conv.args[1])[-2:])
    head = [conv.args[0], conv.args[1], argument(conv, 2), argument(conv, 3)]
    y = graph.call(conv.target, *head, [0, rows, columns], argument(conv, 5), argument(conv, 6))
    _, c, t, h, w = shape_of(y)
    y = graph.call(aten.reshape.default, y, [1, c * t, h, w])
    for axis, cut, size in ((2, rows, h), (3, columns, w)):
        if cut:
            y = graph.call(aten.slice.Tensor, y, axis, cut, size - cut)
    return graph.call(aten.reshape.default, y, list(shape_of(conv)))


def _padded(*pads: Any, kernel: Any = 3, **options: Any):
    return lambda: nn.Sequential(nn.ConstantPad3d(pads, 0.0), nn.Conv3d(4, 6, kernel, **options))


ZEROS = Rewrite(
    name="pad_conv",
    why="A padded clip is a copy of it; convolutions pad for nothing, and Vulkan's stacked frames only so.",
    match=_match_zeros,
    check=_check_zeros,
    replace=_replace_zeros,
    cases=(
        Case("causal", _padded(1, 1, 1, 1, 2, 0), (1, 4, 3, 4, 5)),
        Case("space alone", _padded(1, 1, 2, 2, 0, 0, kernel=(1, 5, 3)), (1, 4, 3, 4, 5)),
    ),
    near_misses=(
        Case("time alone", _padded(0, 0, 0, 0, 2, 0), (1, 4, 3, 4, 5), 0),
        Case("uneven", _padded(0, 1, 1, 1, 2, 0), (1, 4, 3, 4, 5), 0, "on both sides"),
        Case("padded twice", _padded(1, 1, 1, 1, 2, 0, padding=1), (1, 4, 3, 4, 5), 0, "pads too"),
    ),
)

CROPPED = Rewrite(
    name="crop_conv",
    why=(
        "In stacked frames a convolution that shrinks its frames would see two at once at every border; with rows "
        "of zeros between them it keeps their size, and what is too much is cut off."
    ),
    match=_match_cropped,
    check=_check_cropped,
    replace=_replace_cropped,
    cases=(
        Case("dense", conv3d(4, 6, 3, padding=0), (1, 4, 4, 5, 6)),
        Case("rows alone", conv3d(4, 6, (1, 3, 1), padding=0), (1, 4, 3, 5, 6)),
    ),
    near_misses=(
        Case("padded", conv3d(4, 6, 3), (1, 4, 4, 5, 6), 0),
        Case("pointwise", conv3d(4, 6, 1, padding=0), (1, 4, 4, 5, 6), 0),
        Case("stride", conv3d(4, 6, 3, padding=0, stride=(1, 2, 2)), (1, 4, 4, 5, 6), 0, "stride"),
        Case("even", conv3d(4, 6, (1, 2, 2), padding=0), (1, 4, 4, 5, 6), 0, "even"),
    ),
)
