"""ExecuTorch with the XNNPACK delegate.

What the partitioner leaves outside runs in ExecuTorch's portable kernels, which are slow, and splits the delegate.
"""

from __future__ import annotations

import torch
from torch import fx

from ..graph.limits import Limit, aten, axes, computed_dtype, half_precision, has_number, rank, tensors
from ..graph.nodes import argument, is_call, is_constant, shape_of

PARTITIONER = "executorch 1.5.1, backends/xnnpack/partition/config"
RUNTIME = "executorch 1.5.1, when the program is loaded or run"

_CONV3D = (aten.conv3d.default, aten.conv_transpose3d.input)
_CONV = (aten.conv1d.default, aten.conv2d.default, aten.conv_transpose1d.default, aten.conv_transpose2d.input)
_PRODUCTS = (aten.matmul.default, aten.mm.default, aten.linear.default)
_WITH_NUMBERS = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)

_TAKEN = (
    *_CONV,
    *_PRODUCTS,
    *_WITH_NUMBERS,
    aten.abs.default,
    aten.avg_pool2d.default,
    aten.batch_norm.default,
    aten.bmm.default,
    aten.cat.default,
    aten.ceil.default,
    aten.clamp.default,
    aten.clone.default,
    aten.constant_pad_nd.default,
    aten.contiguous.default,
    aten.cos.default,
    aten.exp.default,
    aten.flatten.using_ints,
    aten.floor.default,
    aten.gelu.default,
    aten.hardswish.default,
    aten.hardtanh.default,
    aten.leaky_relu.default,
    aten.log.default,
    aten.max_pool2d.default,
    aten.maximum.default,
    aten.mean.dim,
    aten.minimum.default,
    aten.movedim.int,
    aten.neg.default,
    aten.pad.default,
    aten.permute.default,
    aten.pixel_shuffle.default,
    aten.pow.Tensor_Scalar,
    aten.relu.default,
    aten.reshape.default,
    aten.rsqrt.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.sin.default,
    aten.slice.Tensor,
    aten.softmax.int,
    aten.sqrt.default,
    aten.tanh.default,
    aten.transpose.int,
    aten.unflatten.int,
    aten.upsample_bilinear2d.vec,
    aten.view.default,
)


def limits(node: fx.Node, dtype: torch.dtype) -> Limit | None:
    """Why XNNPACK does not take a node."""
    if reason := _refused(node):
        return Limit("refused", reason, RUNTIME)
    if reason := _outside(node, dtype):
        return Limit("outside", reason, PARTITIONER)
    return half_precision(node, dtype)


def _refused(node: fx.Node) -> str | None:
    if is_call(node, *_CONV3D):
        return "no 3D convolution: the portable kernel that it is left to takes rank 3 and 4, and fails with 0x12"
    if is_call(node, aten.pixel_shuffle.default) and rank(node) > 4:
        permuted = rank(node) + 2
        return f"a shuffle of rank {rank(node)} becomes a permutation of rank {permuted}: over 6 it does not load"
    return f"rank {rank(node)}: a program with more than 6 axes does not load" if rank(node) > 6 else None


def _outside(node: fx.Node, dtype: torch.dtype) -> str | None:
    if not is_call(node, *_TAKEN):
        return "no such op in XNNPACK"
    for found in (computed_dtype(t, dtype) for t in tensors(node)):
        if found not in (torch.float32, torch.float16):
            return f"{found}: only fp32 and fp16"
    return _outside_by_arguments(node) or (_outside_in_half(node) if dtype == torch.float16 else None)


def _outside_by_arguments(node: fx.Node) -> str | None:
    if is_call(node, aten.mean.dim) and not (
        len(shape_of(node.args[0])) == 4 and axes(node) == [2, 3] and argument(node, 2)
    ):
        return "a mean is taken over height and width of rank 4 only, with keepdim"
    if is_call(node, aten.pow.Tensor_Scalar) and argument(node, 1) != 2:
        return f"power {argument(node, 1)}: only squares"
    if is_call(node, aten.slice.Tensor) and argument(node, 4) != 1:
        return f"slice with step {argument(node, 4)}: only 1"
    if is_call(node, aten.softmax.int) and argument(node, 1) % len(shape_of(node)) != len(shape_of(node)) - 1:
        return "softmax is taken over the last axis only"
    if is_call(node, aten.cat.default) and len(node.all_input_nodes) < 2:
        return "concatenates one tensor with itself"
    if is_call(node, aten.pad.default) and (argument(node, 2) != "constant" or min(argument(node, 1)) < 0):
        return f"padding by {argument(node, 2)!r}: only by a constant, and no cropping"
    if is_call(node, *_CONV, *_PRODUCTS) and not is_constant(node.args[1]):
        return "the second operand, or the weight, is computed: only constants"
    return None


def _outside_in_half(node: fx.Node) -> str | None:
    if is_call(node, aten.silu.default):
        return "ExecuTorch decomposes a half-precision SiLU with casts to fp32 and back"
    if is_call(node, aten.gelu.default):
        return "GELU in fp32 only"
    if is_call(node, *_WITH_NUMBERS) and has_number(node):
        return "a bare number is cast to fp16 at run time: only constant tensors"
    return None
