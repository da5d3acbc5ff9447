"""ONNX, run by onnxruntime."""

from __future__ import annotations

from typing import Any

import torch

from handheld.runtime.manifest import Tolerance

from ..quantize import qdq
from ..quiet import quiet
from ..rewrites import (
    batch_in_time,
    cancel_layouts,
    channel_layer_norm,
    conv3d_concat,
    conv3d_taps,
    interleave_frames,
    merge_border_taps,
    pixel_shuffle,
    safe_rms_norm,
)
from ..target import Job, Lowered, Precision, Target, in_half

REWRITES = (
    # Multi-op patterns first, while the ops that they are made of are still there.
    channel_layer_norm.REWRITE,
    interleave_frames.REWRITE,
    pixel_shuffle.FRAMES,
    conv3d_taps.REWRITE,
    # Everything else that is still of rank 5.
    batch_in_time.REWRITE,
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
    # One accumulator for all taps: no Winograd, whose transforms 8 bits cannot hold, and no sum of rounded taps.
    conv3d_concat.REWRITE,
    # What the two leave: pointwise and long depthwise convolutions.
    conv3d_taps.REWRITE,
    # Everything else that is still of rank 5.
    batch_in_time.REWRITE,
    # Last: the others leave layout changes in pairs.
    cancel_layouts.REWRITE,
)


def lower(job: Job) -> Lowered:
    """Write a `.onnx` file with its weights inside; I/O in fp16 for fp16, else in fp32."""
    half = job.precision == "fp16"
    graph, latents = in_half(job) if half else (job.graph, job.latents)
    settings: dict[str, Any] = {}
    with quiet():
        if job.precision == "int8":
            graph, choice = qdq.quantize(graph, job.calibration)
            settings["quantized"] = choice.record(len(job.calibration))
        program = torch.onnx.export(
            torch.export.export(graph, (latents,)),
            dynamo=True,
            verbose=False,
            input_names=["latents"],
            output_names=["frames"],
        )
        assert program is not None  # dynamo=True always returns one
        program.save(job.path, external_data=False)
    dtype = "float16" if half else "float32"
    opset = program.model.opset_imports[""]
    return Lowered(dtype, dtype, settings={"opset": opset, "exporter": "torch.onnx, dynamo", **settings})


TARGET = Target(
    name="onnx",
    extra="onnx",
    runtime="onnxruntime",
    filename="decoder.onnx",
    packages=("onnx", "onnxscript", "torchao"),
    precisions={
        "fp32": Precision(
            REWRITES, Tolerance(1e-3, "fp32 sums in another order: at most 2.4e-5 measured, on ltx at 256x256x9")
        ),
        "fp16": Precision(
            # Before anything else, while the norm still is one recognisable pattern.
            (safe_rms_norm.REWRITE, *REWRITES),
            Tolerance(
                0.05,
                "fp16 rounding through the whole stack: at most 0.009 measured on tiny and ltx with random weights",
            ),
        ),
        "int8": Precision(
            INT8_REWRITES,
            Tolerance(
                None,
                "8-bit convolutions: 55 dB measured on tiny, distilled, on real latents; 39 dB on ltx and 40 dB on "
                "hunyuan at 256x256x9 with random weights and latents",
                min_psnr_db=35.0,
            ),
            calibrated=True,
        ),
    },
    lower=lower,
)
