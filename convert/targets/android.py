"""ExecuTorch with the XNNPACK delegate, for Android (and any other CPU)."""

from __future__ import annotations

import collections
import operator
import os
from typing import Any

import torch
from torch import fx

from handheld.runtime.manifest import Tolerance

from ..quantize import xnnpack
from ..quiet import quiet
from ..rewrites import (
    batch_in_time,
    cancel_layouts,
    channel_layer_norm,
    channel_mean,
    conv3d_concat,
    conv3d_taps,
    interleave_frames,
    merge_border_taps,
    pixel_shuffle,
    safe_rms_norm,
    split_silu,
)
from ..target import Job, Lowered, Precision, Target, in_half

REWRITES = (
    # Multi-op patterns first, while the ops that they are made of are still there.
    channel_layer_norm.REWRITE,
    interleave_frames.REWRITE,
    pixel_shuffle.FRAMES,
    conv3d_taps.REWRITE,
    # After the norms, whose means it takes; before batch_in_time, which would keep the mean a mean.
    channel_mean.REWRITE,
    # Everything else that is still of rank 5.
    batch_in_time.REWRITE,
    # After pixel_shuffle_frames, which makes the shuffles rank 4.
    pixel_shuffle.PERMUTED,
    # Last: the others leave layout changes in pairs.
    cancel_layouts.REWRITE,
)

INT8_REWRITES = (
    # Multi-op patterns first, while the ops that they are made of are still there.
    channel_layer_norm.REWRITE,
    interleave_frames.REWRITE,
    pixel_shuffle.FRAMES,
    # Depthwise convolutions stay in fp32: beside the others in 8 bits they are worth fewer passes.
    merge_border_taps.REWRITE,
    # One accumulator for all taps: no sum of rounded taps.
    conv3d_concat.REWRITE,
    # What the two leave: pointwise and long depthwise convolutions.
    conv3d_taps.REWRITE,
    # After the norms, whose means it takes; before batch_in_time, which would keep the mean a mean.
    channel_mean.REWRITE,
    # Everything else that is still of rank 5.
    batch_in_time.REWRITE,
    # After pixel_shuffle_frames, which makes the shuffles rank 4.
    pixel_shuffle.PERMUTED,
    # Last: the others leave layout changes in pairs.
    cancel_layouts.REWRITE,
)


def lower(job: Job) -> Lowered:
    """Write a `.pte` file; I/O in fp16 for fp16, else in fp32."""
    half = job.precision == "fp16"
    graph, latents = in_half(job) if half else (job.graph, job.latents)
    settings: dict[str, Any] = {"backend": "XNNPACK"}
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        if job.precision == "int8":
            graph, choice = xnnpack.quantize(graph, job.calibration)
            settings["quantized"] = choice.record(len(job.calibration))
        program = torch.export.export(graph, (latents,))
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        delegation = _delegation(edge, job.graph)  # before memory planning adds its own calls
        with open(job.path, "wb") as file:
            edge.to_executorch().write_to_file(file)
            file.flush()
            os.fsync(file.fileno())
    dtype = "float16" if half else "float32"
    return Lowered(dtype, dtype, settings=settings, delegation=delegation)


def _delegation(edge: Any, graph: fx.GraphModule) -> dict[str, object]:
    """Delegates, and what was left outside them, by op."""
    outside: collections.Counter[str] = collections.Counter()
    delegates = 0
    for node in edge.exported_program().graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            delegates += 1  # executorch_call_delegate, a higher-order op
        else:
            outside[schema.name] += 1
    total = sum(node.op == "call_function" for node in graph.graph.nodes)
    return {"delegates": delegates, "ops_before_lowering": total, "ops_outside": dict(outside)}


TARGET = Target(
    name="android",
    extra="android",
    runtime="executorch",
    filename="decoder.pte",
    packages=("executorch",),
    precisions={
        "fp32": Precision(
            REWRITES, Tolerance(1e-3, "fp32 sums in another order: at most 2.4e-5 measured, on ltx at 256x256x9")
        ),
        "fp16": Precision(
            # Before anything else, while the norm still is one recognisable pattern.
            (safe_rms_norm.REWRITE, split_silu.REWRITE, *REWRITES),
            Tolerance(
                0.05,
                "fp16 rounding through the whole stack: at most 0.009 measured on tiny and ltx with random weights",
            ),
        ),
        "int8": Precision(
            INT8_REWRITES,
            Tolerance(
                None,
                "8-bit convolutions: 55 dB measured on tiny, distilled, on real latents",
                min_psnr_db=35.0,
            ),
            calibrated=True,
        ),
    },
    lower=lower,
)
