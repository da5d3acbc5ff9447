"""Products that Core AI gets wrong without an error, in a form that it gets right.

    before   y = a @ r                  a (M, K), r (K, N) = reshape(x)
    after    y = (r^T @ a^T)^T

coreai-core 1.0.0b3 leaves the reshape out where x has K as its last axis but one. It multiplies a by each matrix of
x, sums over another axis than was meant, and gives what has the right number of values by chance. With x of
(T, C, H, W), r of (T, C*H*W) and T = H the largest error is as large as the values, in fp32 and fp16. As the left
operand, or in a batch of several, r is read right.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..graph.nodes import is_call, shape_of
from ..graph.ops import RESHAPES, aten

# What decomposition leaves of matmul, linear and reshape; other graphs hold none of these.
_PRODUCTS = (aten.mm.default, aten.bmm.default)
_SAME_ORDER = (*RESHAPES, aten._unsafe_view.default, aten.clone.default)


def protect_products(program: Any) -> int:
    """Rewrite such products of an exported program, decomposed, in place. Returns how many there were."""
    module = program.graph_module
    found = [node for node in module.graph.nodes if is_call(node, *_PRODUCTS) and _is_misread(node.args[1])]
    for node in found:
        _swap(node)
    module.graph.lint()
    module.recompile()
    return len(found)


def _is_misread(right: fx.Node) -> bool:
    """Whether a right operand (.., K, N) is reshaped from another tensor with K as its last axis but one."""
    node, matrix = right, shape_of(right)[-2:]
    while is_call(node, *_SAME_ORDER) or _is_idle_expand(node):
        node = node.args[0]
        shape = shape_of(node)
        if len(shape) >= 2 and shape[-2] == matrix[0] and shape[-2:] != matrix:
            return True
    return False


def _is_idle_expand(node: fx.Node) -> bool:
    """Whether a node expands a tensor to the shape that it has: matmul is decomposed so."""
    return is_call(node, aten.expand.default) and shape_of(node) == shape_of(node.args[0])


def _swap(node: fx.Node) -> None:
    """Turn a product into the transpose of the swapped one. The node keeps its name, which may be an output's."""
    left, right = node.args
    axes = [1, 0] if node.target is aten.mm.default else [0, 2, 1]
    with node.graph.inserting_before(node):
        turned = [_call(node, aten.permute.default, operand, axes) for operand in (right, left)]
        product = _call(node, node.target, *turned)
    node.target = aten.permute.default
    node.args = (product, axes)


def _call(like: fx.Node, target: Any, *args: Any) -> fx.Node:
    made = like.graph.call_function(target, args)
    made.meta = dict(like.meta)
    made.meta["val"] = target(*fx.map_arg(args, lambda node: node.meta["val"]))
    return made
