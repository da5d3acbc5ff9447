"""Core AI, as coreai-torch converts to it.

It has a translation for most ops, in any rank: what is not named here is taken to convert.
"""

from __future__ import annotations

import torch
from torch import fx

from ..graph.limits import Limit, aten, half_precision, rank
from ..graph.nodes import argument, is_call

CONVERTER = "coreai-torch 0.4.3, TorchConverter"
TRANSPOSED = "apple/coreai-torch #3"
NEURAL_ENGINE = "apple/coreai-models, rules for the neural engine: rank 5 at most"
CONV3D = "pytorch/pytorch #192213: on Apple's GPU at 7 to 9 % of the rate of 2D"

# Also what a convertible-looking name decomposes to: selu is elu, std and var_mean are var, fold adds into places.
_UNKNOWN = (
    *(aten.elu.default, aten.selu.default),
    *(aten.var.dim, aten.var.correction, aten.std.dim, aten.std.correction),
    *(aten.var_mean.dim, aten.var_mean.correction, aten.std_mean.dim, aten.std_mean.correction),
    *(aten.max_pool3d.default, aten.max_pool3d_with_indices.default),
    *(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default),
    *(aten.as_strided.default, aten.unfold.default, aten.cdist.default),
    *(aten.index_add.default, aten.scatter_add.default, aten.col2im.default),
    *(aten.fft_fft.default, aten.fft_rfft.default, aten._fft_r2c.default, aten._fft_c2c.default),
)


def limits(node: fx.Node, dtype: torch.dtype) -> Limit | None:
    """Why Core AI does not take a node, or not on the neural engine or the GPU."""
    return _refused(node) or half_precision(node, dtype) or _slow(node)


def _refused(node: fx.Node) -> Limit | None:
    if is_call(node, *_UNKNOWN):
        return Limit("refused", "coreai-torch has no translation of it", CONVERTER)
    if is_call(node, aten.conv_transpose3d.input):
        return Limit("refused", "coreai-torch has no transposed 3D convolution", TRANSPOSED)
    if is_call(node, aten.index_put.default) and argument(node, 3):
        return Limit("refused", "coreai-torch does not add into places", CONVERTER)
    return None


def _slow(node: fx.Node) -> Limit | None:
    if is_call(node, aten.conv3d.default):
        return Limit("slow", "a 3D convolution, which the GPU computes slower than 2D ones", CONV3D)
    if rank(node) > 5:
        return Limit("slow", f"rank {rank(node)}: the neural engine takes at most 5", NEURAL_ENGINE)
    return None
