"""ExecuTorch with the XNNPACK delegate, for Android (and any other CPU)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import fx

from handheld.runtime.manifest import Tolerance

from ..choice.choose import Choice
from ..choice.costs import shipped_table
from ..graph.rewrite import GraphPass, Rewrite
from ..pixels import output_dtype
from ..quiet import quiet
from ..rewrites import (
    batch_in_time,
    cancel_layouts,
    cat_of_itself,
    channel_mean,
    conv3d_concat,
    conv3d_taps,
    interleave_frames,
    merge_border_taps,
    nearest_frames,
    number_operands,
    pad_frames,
    pixel_shuffle,
    plain_attention,
    split_silu,
    temporal_winograd,
    upsample_conv,
    winograd_frames,
)
from ..rewrites.first import first
from ..target import FP16_SUMS_MIN_PSNR_DB, Job, Lowered, Precision, Target, in_half
from . import program as pte
from . import quantize as xnnpack
from .indirection import transient_indirection
from .xnnpack_limits import limits

_COSTS = partial(shipped_table, "xnnpack")


def _cheapest(*convolutions: Rewrite) -> Choice:
    """At each place the cheapest of `convolutions` and one 2D convolution per tap."""
    return Choice((*convolutions, conv3d_taps.REWRITE), _COSTS)


def _rewrites(*convolutions: GraphPass, half: bool = False) -> tuple[GraphPass, ...]:
    """The list, with what 3D convolutions become."""
    return (
        # Multi-op patterns first, while the ops that they are made of are still there.
        *first(half=half),
        plain_attention.REWRITE,
        interleave_frames.REWRITE,
        pixel_shuffle.FRAMES,
        # Before pixel_shuffle_permuted, for the shuffle that it leaves.
        upsample_conv.REWRITE,
        # After upsample_conv, which makes less of it.
        nearest_frames.SHUFFLED,
        *convolutions,
        # After the norms, whose means it takes; before batch_in_time, which would keep the mean a mean.
        channel_mean.REWRITE,
        # Everything else that is still of rank 5.
        pad_frames.REWRITE,
        batch_in_time.REWRITE,
        # After pixel_shuffle_frames, which makes the shuffles rank 4.
        pixel_shuffle.PERMUTED,
        # After all that look through concatenated frames.
        cat_of_itself.REWRITE,
        # After batch_in_time, which does so for clips.
        number_operands.REWRITE,
        # Last: the others leave layout changes in pairs.
        cancel_layouts.REWRITE,
    )


def lower(job: Job) -> Lowered:
    """Write a `.pte` file; I/O in fp16 for fp16, else in fp32. Equal weights of several shapes are stored once."""
    half = job.precision == "fp16"
    settings: dict[str, Any] = {"backend": "XNNPACK"}
    methods = {}
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        for shape in job.shapes(pte.METHOD):
            graph, inputs = in_half(shape.graph, shape.inputs) if half else (shape.graph, shape.inputs)
            if job.precision == "int8":
                graph, plan = xnnpack.quantize(graph, shape.calibration)
                settings.setdefault("quantized", plan.record(len(shape.calibration)))  # the first shape's
            methods[shape.method] = graph, inputs
        with transient_indirection():
            edge = pte.to_edge(methods, XnnpackPartitioner())
        delegation = pte.delegation_of(edge, [s.graph for s in job.shapes(pte.METHOD)], _refusal)
        pte.write(edge, job.path)
    dtype = "float16" if half else "float32"
    return Lowered(dtype, output_dtype(job.graph, dtype), settings=settings, delegation=delegation)


def _refusal(node: fx.Node) -> str:
    """The partitioner gives no reasons; `handheld check` has those that are known."""
    return "XNNPACK's partitioner does not take it"


TARGET = Target(
    name="android",
    extra="android",
    runtime="executorch",
    filename="decoder.pte",
    packages=("executorch",),
    precisions={
        "fp32": Precision(
            _rewrites(_cheapest(merge_border_taps.REWRITE, *temporal_winograd.POINTWISE, winograd_frames.REWRITE)),
            Tolerance(1e-3, "fp32 sums in another order: at most 3.6e-5 measured, on ltx at 256x256x9"),
        ),
        "fp16": Precision(
            (split_silu.REWRITE, *_rewrites(_cheapest(merge_border_taps.REWRITE), half=True)),
            Tolerance(
                0.05,
                "fp16 rounding and sums through the whole stack: at most 0.026, and 56 dB, measured on tiny with "
                "random weights",
                min_psnr_db=FP16_SUMS_MIN_PSNR_DB,
            ),
            torch.float16,
        ),
        "int8": Precision(
            # One accumulator for all taps: no sum of rounded taps.
            # Then depthwise convolutions, which stay in fp32, and pointwise ones.
            _rewrites(conv3d_concat.REWRITE, _cheapest(merge_border_taps.REWRITE)),
            Tolerance(
                None,
                "8-bit convolutions: 55 dB measured on tiny, distilled, on real latents",
                min_psnr_db=35.0,
            ),
            calibrated=True,
        ),
    },
    lower=lower,
    limits=limits,
    method=pte.METHOD,
    several_shapes=True,
    streams=True,
)
