"""ONNX, run by onnxruntime."""

from __future__ import annotations

import torch

from handheld.runtime.manifest import Tolerance

from ..limits.onnxruntime import limits
from ..quiet import quiet
from ..rewrites import (
    batch_in_time,
    cancel_layouts,
    channel_layer_norm,
    conv3d_taps,
    interleave_frames,
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


def lower(job: Job) -> Lowered:
    """Write a `.onnx` file with its weights inside; I/O in the artefact's precision."""
    half = job.precision == "fp16"
    graph, latents = in_half(job) if half else (job.graph, job.latents)
    with quiet():
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
    return Lowered(dtype, dtype, settings={"opset": opset, "exporter": "torch.onnx, dynamo"})


TARGET = Target(
    name="onnx",
    extra="onnx",
    runtime="onnxruntime",
    filename="decoder.onnx",
    packages=("onnx", "onnxscript"),
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
            torch.float16,
        ),
    },
    lower=lower,
    limits=limits,
)
