"""RMSNorm over channels, without moving them last and back.

    before   p = movedim(x, 1, -1)
             movedim(p * rsqrt(mean(p^2, -1) + eps), -1, 1)                         x: NCTHW or (N, C, H, W)
    after    x * rsqrt(mean(x^2, 1) + eps)

`safe_rms_norm` and `channel_mean` know the result.
"""

from __future__ import annotations

from torch import fx

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, shape_of
from .cases import of
from .frames import aten


def _axis(value: int, node: fx.Node) -> int:
    return value % len(shape_of(node))


def _moves(node: object, source: int, destination: int) -> bool:
    """Whether a node moves that one axis to that place, axes counted from the front or from behind."""
    if not is_call(node, aten.movedim.int, aten.permute.default):
        return False
    assert isinstance(node, fx.Node)
    rank = len(shape_of(node))
    source, destination = source % rank, destination % rank
    if is_call(node, aten.movedim.int):
        return (_axis(node.args[1], node), _axis(node.args[2], node)) == (source, destination)
    order = [axis for axis in range(rank) if axis != source]
    order.insert(destination, source)
    return [axis % rank for axis in node.args[1]] == order


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not _moves(node, -1, 1):
        return None
    product = node.args[0]
    if not is_call(product, aten.mul.Tensor):
        return None
    moved, scale = product.args[:2]
    if not _moves(moved, 1, -1) or not is_call(scale, aten.rsqrt.default):
        return None
    add = scale.args[0]
    if not is_call(add, aten.add.Tensor) or not is_call(add.args[0], aten.mean.dim):
        return None
    mean = add.args[0]
    square = mean.args[0]
    found = is_call(square, aten.pow.Tensor_Scalar) and square.args[:2] == (moved, 2)
    return (node, product, moved, scale, add, mean, square) if found else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    *_, add, mean, square = match
    axes = argument(mean, 1)
    if [_axis(axis, square) for axis in axes] != [len(shape_of(square)) - 1] or not argument(mean, 2):
        return f"normalises over axes {list(axes)}, not over channels with keepdim"
    if not isinstance(add.args[1], int | float):
        return "epsilon is computed, not a number"
    return None


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    _, _, moved, _, add, _, _ = match
    x = moved.args[0]
    mean = graph.call(aten.mean.dim, graph.call(aten.pow.Tensor_Scalar, x, 2), [1], True)
    scale = graph.call(aten.rsqrt.default, graph.call(aten.add.Tensor, mean, add.args[1]))
    return graph.call(aten.mul.Tensor, x, scale)


def _norm(axis: int = -1, eps: float = 1e-6):
    def norm(x):
        p = x.movedim(1, -1)
        return (p * (p.pow(2).mean(axis, keepdim=True) + eps).rsqrt()).movedim(-1, 1)

    return of(norm)


def _permuted(x):
    p = x.permute(0, 2, 3, 1)
    return (p * (p.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()).permute(0, 3, 1, 2)


REWRITE = Rewrite(
    name="channel_rms_norm",
    why="Moving channels last and back is two copies of a clip at rank 5, which no delegate takes whole.",
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("clip", _norm(), (1, 8, 3, 4, 5)),
        Case("frames, by permutations", of(_permuted), (3, 8, 4, 5)),
    ),
    near_misses=(
        Case("over width", _norm(axis=-2), (1, 8, 3, 4, 5), 0, "over axes [-2]"),
        Case("moved only", of(lambda x: x.movedim(1, -1).relu().movedim(-1, 1)), (1, 8, 3, 4, 5), 0),
    ),
)
