"""Core ML ML programs, as coremltools converts them.

coremltools has a translation for most ops: what is not named here is taken to convert.
"""

from __future__ import annotations

import torch
from torch import fx

from ..graph.limits import Limit, aten, half_precision, rank
from ..graph.nodes import is_call, shape_of
from ..graph.ops import PERMUTATIONS

CONVERTER = "coremltools 9.0, convert"
CONV3D = "apple/coremltools #1368"
NEURAL_ENGINE = "Apple, Deploying Transformers on the Apple Neural Engine, 2022: rank 4, channels first"

_UNKNOWN = (
    aten.alias.default,
    aten._upsample_nearest_exact2d.vec,
    aten.upsample_nearest3d.vec,
    aten.conv_transpose3d.input,
)
_RESHAPES = (aten.reshape.default, aten.view.default)


def limits(node: fx.Node, dtype: torch.dtype) -> Limit | None:
    """Why Core ML does not take a node, or not on the neural engine."""
    return _refused(node) or half_precision(node, dtype) or _slow(node)


def _refused(node: fx.Node) -> Limit | None:
    if is_call(node, *_UNKNOWN):
        return Limit("refused", "coremltools has no translation of it", CONVERTER)
    if is_call(node, aten.pixel_shuffle.default) and len(shape_of(node)) != 4:
        return Limit("refused", f"pixel shuffle of rank {len(shape_of(node))}: only 4", CONVERTER)
    if rank(node) > 5 and not _is_expanded(node):
        return Limit("refused", f"rank {rank(node)}: at most 5", CONVERTER)
    return None


def _slow(node: fx.Node) -> Limit | None:
    if is_call(node, aten.conv3d.default):
        return Limit("slow", "a 3D convolution runs on the GPU, since iOS 17, before that on the CPU", CONV3D)
    if rank(node) > 4:
        return Limit("slow", f"rank {rank(node)}: the neural engine works on rank 4", NEURAL_ENGINE)
    return None


def _is_expanded(node: fx.Node) -> bool:
    """Whether a node is of a reshape, permutation, reshape over rank 5, which coremltools writes at rank 5."""
    middles = (node, node.args[0], _only_user(node))
    return any(node in triple for triple in map(_expanded, middles))


def _expanded(middle: object) -> tuple[fx.Node, ...]:
    """The three nodes around a permutation that coremltools expands; none where it does not."""
    if not is_call(middle, *PERMUTATIONS):
        return ()
    first, last = middle.args[0], _only_user(middle)
    if not is_call(first, *_RESHAPES) or not is_call(last, *_RESHAPES) or _only_user(first) is not middle:
        return ()
    return (first, middle, last) if max(len(shape_of(first.args[0])), len(shape_of(last))) <= 5 else ()


def _only_user(node: fx.Node | None) -> fx.Node | None:
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None
