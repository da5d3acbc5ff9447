"""Zero padding in time, which a 3D convolution does itself, in front of it.

before   conv3d(x, W, padding (t, h, w))                                       x: NCTHW
after    conv3d(pad(x, (0, 0, 0, 0, t, t), zeros), W, padding (0, h, w))
"""

from __future__ import annotations

from torch import fx

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call
from .cases import conv3d
from .frames import aten


def _padding(conv: fx.Node) -> list[int]:
    given = argument(conv, 4)
    return list(given) * (1 if len(given) == 3 else 3)


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not is_call(node, aten.conv3d.default) or isinstance(argument(node, 4), str):
        return None
    return (node,) if _padding(node)[0] else None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (conv,) = match
    time, height, width = _padding(conv)
    x = graph.call(aten.constant_pad_nd.default, conv.args[0], [0, 0, 0, 0, time, time], 0)
    weight, bias, stride = (argument(conv, index) for index in (1, 2, 3))
    rest = [argument(conv, index) for index in (5, 6)]
    return graph.call(conv.target, x, weight, bias, stride, [0, height, width], *rest)


REWRITE = Rewrite(
    name="pad_time",
    why="A convolution over time becomes convolutions of frames only where the frames it reads are there.",
    match=_match,
    check=lambda match: None,
    replace=_replace,
    cases=(
        Case("all axes", conv3d(4, 6, 3, padding=1), (1, 4, 3, 4, 5)),
        Case("uneven axes", conv3d(4, 6, (5, 1, 3), padding=(2, 0, 1)), (1, 4, 3, 4, 5)),
        Case("grouped", conv3d(4, 4, 3, padding=1, groups=4), (1, 4, 3, 4, 5)),
    ),
    near_misses=(
        Case("space alone", conv3d(4, 6, 3), (1, 4, 3, 4, 5), 0),
        Case("no padding", conv3d(4, 6, 1, padding=0), (1, 4, 3, 4, 5), 0),
    ),
)
