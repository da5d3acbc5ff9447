"""ExecuTorch with the Vulkan delegate, for the GPUs of Android phones."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from handheld.runtime.manifest import Tolerance

from ..graph.nodes import shape_of
from ..pixels import output_dtype
from ..quiet import quiet
from ..rewrites import (
    cancel_layouts,
    conv_stacked,
    interleave_frames,
    pad_conv,
    pad_frames,
    pixel_shuffle,
    plain_attention,
    split_frames,
    stack_frames,
    upsample_conv,
)
from ..rewrites.first import first
from ..target import FP16_SUMS_MIN_PSNR_DB, Job, Lowered, Precision, Target
from . import program as pte
from .vulkan_limits import limits

# Multi-op patterns come first, while the ops that they are made of are still there.
_AFTER = (
    plain_attention.REWRITE,
    interleave_frames.STACKED,
    split_frames.REWRITE,
    # Before pixel_shuffle_stacked and conv2d_stacked, for the shuffle and the convolution that it leaves.
    upsample_conv.REWRITE,
    pixel_shuffle.STACKED,
    pad_conv.CROPPED,
    conv_stacked.CONV3D,
    # What the model itself convolves frame by frame.
    conv_stacked.CONV2D,
    # Everything else that is still of rank 5.
    pad_frames.STACKED,
    stack_frames.REWRITE,
    # Last: the others leave layout changes in pairs.
    cancel_layouts.REWRITE,
)

REWRITES = (*first(stacked=True), *_AFTER)


def lower(job: Job) -> Lowered:
    """Write a `.pte` file; I/O in fp32, computation in the artefact's precision.

    In fp16 the delegate keeps every tensor in half precision and casts at its border: the graph stays fp32.
    """
    with quiet():
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        options = {"force_fp16": job.precision == "fp16"}
        shapes = job.shapes(pte.METHOD)
        edge = pte.to_edge({s.method: (s.graph, s.inputs) for s in shapes}, VulkanPartitioner(options))
        delegation = pte.delegation_of(edge, [s.graph for s in shapes], _refusal)
        pte.write(edge, job.path)
    tallest = max(_tallest(s.graph) for s in shapes)
    return Lowered(
        output_dtype=output_dtype(job.graph, "float32"),
        settings={"backend": "Vulkan", **options, "tallest_texture": tallest},
        delegation=delegation,
    )


def _refusal(node: fx.Node) -> str:
    """The reason that the partitioner logs, asked again for one node."""
    from executorch.backends.vulkan import utils
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanSupportedOperators

    class Reasons(VulkanSupportedOperators):
        reason = ""

        def log_skip(self, node: Any, reason: str) -> None:
            self.reason = reason

    support = Reasons(utils.DEFAULT_TEXTURE_LIMITS, utils.DEFAULT_BUFFER_LIMIT)
    support.is_node_supported({}, node)
    return support.reason


def _tallest(graph: fx.GraphModule) -> int:
    """Rows of the tallest picture, which a device's maxImageDimension3D must reach."""
    return max(shape_of(n)[2] for n in graph.graph.nodes if "val" in n.meta and len(shape_of(n)) == 4)


TARGET = Target(
    name="android-vulkan",
    extra="android",
    runtime="executorch-vulkan",
    filename="decoder.pte",
    packages=("executorch",),
    precisions={
        "fp16": Precision(
            (*first(half=True, stacked=True), *_AFTER),
            Tolerance(
                0.05,
                "fp16 rounding through the stack, as on the other targets; not measured on a GPU",
                min_psnr_db=FP16_SUMS_MIN_PSNR_DB,
            ),
            torch.float16,
        ),
        "fp32": Precision(
            REWRITES, Tolerance(1e-3, "fp32 sums in another order, as on the other targets; not measured on a GPU")
        ),
    },
    lower=lower,
    limits=limits,
    default_precision="fp16",
    method=pte.METHOD,
    several_shapes=True,
)
