"""ExecuTorch with the Vulkan delegate.

What the partitioner leaves outside runs in ExecuTorch's portable kernels on the CPU, with copies from and to the
GPU. Tensors of up to 4 axes are 3D textures where they fit, else buffers; over 4, buffers, which few ops take.
"""

from __future__ import annotations

import torch
from torch import fx

from ..graph.limits import Limit, aten, axes, computed_dtype, half_precision, rank, tensors
from ..graph.nodes import argument, is_call, shape_of

PARTITIONER = "executorch 1.5.1, backends/vulkan/op_registry.py"
LOWERING = "executorch 1.5.1, to_edge_transform_and_lower"

# Width, height, and batch times channels in fours, as the partitioner assumes for mobile GPUs.
_TEXTURE = (16384, 16384, 2048)
# What Vulkan guarantees is 256 (`maxImageDimension3D`); GPUs at the low end that ExecuTorch is used on have 2048.
_SMALL_GPU = 2048
_TEXTURE_AXES = ("width", "height", "channels")
_SMALL_GPU_SOURCE = "Vulkan: maxImageDimension3D, 2048 on some GPUs; ExecuTorch assumes 16384"

# Taken with any number of axes, as buffers.
_ANY_RANK = (
    aten.add.Tensor,
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.div.Tensor,
    aten.expand.default,
    aten.flatten.using_ints,
    aten.minimum.default,
    aten.movedim.int,
    aten.mul.Tensor,
    aten.permute.default,
    aten.pow.Tensor_Scalar,
    aten.repeat_interleave.self_int,
    aten.reshape.default,
    aten.rsub.Scalar,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.dim,
    aten.sub.Tensor,
    aten.transpose.int,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.view.default,
)
_REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
# Take and give channels-packed textures and nothing else.
_TEXTURES = (
    aten.conv2d.default,
    aten.conv_transpose2d.input,
    aten.avg_pool2d.default,
    aten.max_pool2d.default,
    aten.batch_norm.default,
    aten.group_norm.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
)
_RANK_4 = (
    *_REDUCTIONS,
    *_TEXTURES,
    aten.abs.default,
    aten.bmm.default,
    aten.cat.default,
    aten.clamp.default,
    aten.constant_pad_nd.default,
    aten.conv1d.default,
    aten.cos.default,
    aten.exp.default,
    aten.gelu.default,
    aten.hardswish.default,
    aten.hardtanh.default,
    aten.layer_norm.default,
    aten.leaky_relu.default,
    aten.linear.default,
    aten.matmul.default,
    aten.mm.default,
    aten.neg.default,
    aten.pad.default,
    aten.pixel_shuffle.default,
    aten.relu.default,
    aten.repeat.default,
    aten.round.default,
    aten.rsqrt.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.sin.default,
    aten.softmax.int,
    aten.sqrt.default,
    aten.stack.default,
    aten.tanh.default,
)


def limits(node: fx.Node, dtype: torch.dtype) -> Limit | None:
    """Why the Vulkan delegate does not take a node."""
    if is_call(node, aten.pixel_shuffle.default) and rank(node) != 4:
        reason = f"pixel shuffle of rank {rank(node)}: only 4, and lowering stops where it is decomposed"
        return Limit("refused", reason, LOWERING)
    if reason := _outside(node, dtype):
        return Limit("outside", reason, PARTITIONER)
    if inexact := half_precision(node, dtype):
        return inexact
    over = {axis for extents in _textures(node) for axis, n in zip(_TEXTURE_AXES, extents) if n > _SMALL_GPU}
    if over:
        named = " and ".join(axis for axis in _TEXTURE_AXES if axis in over)
        reason = f"a texture of more than {_SMALL_GPU} in {named}: on such a GPU, export fewer frames or rows"
        return Limit("device", reason, _SMALL_GPU_SOURCE)
    return None


def _textures(node: fx.Node) -> list[tuple[int, int, int]]:
    """Width, height and depth of the textures that a node takes and gives; none for what may be a buffer."""
    if not is_call(node, *_TEXTURES):
        return []
    found = []
    for tensor in (node.args[0].meta["val"], node.meta["val"]):
        batch, channels, height, width = (1,) * (4 - tensor.ndim) + tuple(tensor.shape)
        found.append((width, height, batch * -(-channels // 4)))
    return found


def _outside(node: fx.Node, dtype: torch.dtype) -> str | None:
    if is_call(node, aten.conv3d.default, aten.conv_transpose3d.input):
        return "no 3D convolution, nor anything of rank 5"
    if not is_call(node, *_ANY_RANK, *_RANK_4):
        return "no such op in the Vulkan delegate"
    for found in (computed_dtype(t, dtype) for t in tensors(node)):
        if found not in (torch.float32, torch.float16, torch.int32, torch.int64, torch.bool):
            return f"{found} is no type of the Vulkan delegate"
    if is_call(node, *_RANK_4) and rank(node) > 4:
        return f"rank {rank(node)}: at most 4 for this op"
    return _by_arguments(node) or _by_size(node)


def _by_arguments(node: fx.Node) -> str | None:
    if is_call(node, aten.conv2d.default, aten.conv_transpose2d.input) and shape_of(node.args[0])[0] != 1:
        return f"batch of {shape_of(node.args[0])[0]}: 2D convolution of one image only"
    if is_call(node, aten.pad.default) and argument(node, 2) != "constant":
        return f"padding by {argument(node, 2)!r}: only by a constant"
    if is_call(node, *_REDUCTIONS):
        reduced = axes(node)
        if len(reduced) > 2 or (not argument(node, 2) and reduced != [len(shape_of(node.args[0])) - 1]):
            return "a reduction runs over one or two axes, with keepdim"
    return None


def _by_size(node: fx.Node) -> str | None:
    for extents in _textures(node):
        if any(extent > most for extent, most in zip(extents, _TEXTURE)):
            return f"a texture of {'x'.join(map(str, extents))}: at most {'x'.join(map(str, _TEXTURE))}"
    return None
