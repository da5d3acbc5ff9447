"""SiLU as the product that it is.

before   silu(x)
after    x * sigmoid(x)
"""

from __future__ import annotations

from torch import fx
from torch.nn import functional as F

from ..graph.rewrite import Case, Graph, Rewrite, is_call
from .cases import of
from .frames import aten


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    return (node,) if is_call(node, aten.silu.default) else None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    x = match[0].args[0]
    return graph.call(aten.mul.Tensor, x, graph.call(aten.sigmoid.default, x))


REWRITE = Rewrite(
    name="split_silu",
    why=(
        "ExecuTorch's own decomposition computes a half-precision SiLU in fp32, and its casts split the "
        "delegate at every activation."
    ),
    match=_match,
    check=lambda match: None,
    replace=_replace,
    cases=(Case("clip", of(F.silu), (1, 4, 3, 2, 5)),),
    near_misses=(Case("another activation", of(lambda x: x.relu()), (1, 4, 3, 2, 5), 0),),
)
