"""onnxruntime on the CPU, through torch's ONNX exporter, which translates all that decoders are made of."""

from __future__ import annotations

import torch
from torch import fx

from ..graph.limits import Limit, aten, computed_dtype, half_precision, tensors
from ..graph.nodes import is_call

KERNELS = "onnxruntime 1.32, NOT_IMPLEMENTED when the model is loaded"
MEASURED = "docs/rewrites.md, and `benchmarks/lowering.py` on any machine"

_SINGLE_ONLY = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv_transpose2d.input,
    aten.avg_pool2d.default,
    aten.group_norm.default,
    aten.upsample_bilinear2d.vec,
)


def limits(node: fx.Node, dtype: torch.dtype) -> Limit | None:
    """Why onnxruntime does not take a node, or takes it slowly."""
    if is_call(node, *_SINGLE_ONLY):
        for found in (computed_dtype(t, dtype) for t in tensors(node)):
            if found not in (torch.float32, torch.float16):
                return Limit("refused", f"{found}: there are kernels for fp32 and fp16 only", KERNELS)
    if limit := half_precision(node, dtype):
        return limit
    if is_call(node, aten.conv3d.default):
        return Limit("slow", "a 3D convolution takes longer than 2D convolutions over its time taps", MEASURED)
    return None
