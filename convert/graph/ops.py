"""What ATen ops mean: the one table that rewrites, costs, memory and precisions read.

What a runtime takes of them is a fact about that runtime, and stands in its own file of limits.

To add an op: its overload, as torch.export writes it, in each group that it belongs to.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from .nodes import is_call, shape_of

aten = torch.ops.aten

CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
)
TRANSPOSED_CONVOLUTIONS = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)

# First operand (..., k), second (k, ...): each output is a sum of k products.
PRODUCTS = (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.linear.default)
# The same of the second and third operand, and a sum with the first.
ADDED_PRODUCTS = (aten.addmm.default, aten.baddbmm.default)
# Queries (..., L, E), keys (..., S, E), values (..., S, V).
ATTENTIONS = (aten.scaled_dot_product_attention.default,)

# Write what they are given in the same order, under other axes.
RESHAPES = (
    aten.alias.default,
    aten.contiguous.default,  # what it is given is contiguous already
    aten.detach.default,
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.view.default,
)
# Write what they are given in another order of the axes.
PERMUTATIONS = (aten.transpose.int, aten.permute.default, aten.movedim.int)
# Write a part of what they are given.
PARTS = (aten.slice.Tensor, aten.select.int)
# Write several tensors as one.
JOINS = (aten.cat.default, aten.stack.default)
# Each value of the output is a value of an input, and each value of an input is there once at most.
MOVES = (*RESHAPES, *PERMUTATIONS, *PARTS, *JOINS, aten.pixel_shuffle.default, aten.pixel_unshuffle.default)

# Each value of the output depends on the one at its place, or those of two tensors that broadcast.
UNARY = (
    aten.abs.default,
    aten.ceil.default,
    aten.clamp.default,
    aten.clamp_max.default,
    aten.clamp_min.default,
    aten.cos.default,
    aten.elu.default,
    aten.erf.default,
    aten.exp.default,
    aten.floor.default,
    aten.gelu.default,
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.hardtanh.default,
    aten.leaky_relu.default,
    aten.log.default,
    aten.neg.default,
    aten.pow.Tensor_Scalar,
    aten.reciprocal.default,
    aten.relu.default,
    aten.relu6.default,
    aten.round.default,
    aten.rsqrt.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.sin.default,
    aten.softplus.default,
    aten.sqrt.default,
    aten.square.default,
    aten.tanh.default,
)
BINARY = (
    aten.add.Tensor,
    aten.div.Tensor,
    aten.maximum.default,
    aten.minimum.default,
    aten.mul.Tensor,
    aten.rsub.Scalar,
    aten.sub.Tensor,
)
ELEMENTWISE = (*UNARY, *BINARY)

# Take a tensor, axes, and whether the axes stay with size 1.
REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)

# Yield their input where nothing is cut off or repeated.
_SAME_AT_EQUAL_SHAPE = (aten.slice.Tensor, aten.expand.default)


def relabels(node: fx.Node) -> bool:
    """Whether a node yields the contiguous memory that it is given, under other axes, and writes nothing."""
    if is_call(node, *RESHAPES) or node.target is operator.getitem:
        return True
    if is_call(node, *PERMUTATIONS):
        return _keeps_order(node)
    return is_call(node, *_SAME_AT_EQUAL_SHAPE) and shape_of(node) == shape_of(node.args[0])


def _keeps_order(node: fx.Node) -> bool:
    """Whether the axes over size 1 stand in the same order after a permutation as before."""
    before = shape_of(node.args[0])
    # On a meta tensor of that shape torch computes strides, which then still are those of contiguous memory.
    moved = node.target(torch.empty(before, device="meta"), *node.args[1:], **node.kwargs)
    return moved.is_contiguous()
