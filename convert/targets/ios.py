"""Core ML ML programs, for iOS and macOS."""

from __future__ import annotations

from functools import partial

import torch

from handheld.runtime.manifest import Tolerance

from ..choice import Choice
from ..cost import shipped_table
from ..limits.coreml import limits
from ..quiet import quiet
from ..rewrites import (
    batch_in_time,
    cancel_layouts,
    channel_layer_norm,
    conv3d_taps,
    interleave_frames,
    merge_border_taps,
    pixel_shuffle,
    safe_rms_norm,
)
from ..target import Job, Lowered, Precision, Target

REWRITES = (
    # Multi-op patterns first, while the ops that they are made of are still there.
    channel_layer_norm.REWRITE,
    # Core ML refuses the rank 6 in it.
    interleave_frames.REWRITE,
    # coremltools converts pixel_shuffle at rank 4 only.
    pixel_shuffle.FRAMES,
    # 3D convolution runs on the GPU only, and only since iOS 17 (apple/coremltools #1368).
    Choice((merge_border_taps.REWRITE, conv3d_taps.REWRITE), partial(shipped_table, "coreml")),
    # Everything else that is still of rank 5.
    batch_in_time.REWRITE,
    # Last: the others leave layout changes in pairs.
    cancel_layouts.REWRITE,
)

DEPLOYMENT_TARGET = "iOS17"


def lower(job: Job) -> Lowered:
    """Write an `.mlpackage` folder; I/O in fp32, computation in the artefact's precision."""
    with quiet():
        import coremltools as ct

        # coremltools takes the decomposed dialect only.
        program = torch.export.export(job.graph, (job.latents,)).run_decompositions({})
        model = ct.convert(
            program,
            minimum_deployment_target=ct.target[DEPLOYMENT_TARGET],
            compute_precision=ct.precision.FLOAT16 if job.precision == "fp16" else ct.precision.FLOAT32,
            inputs=[ct.TensorType(name="latents", shape=tuple(job.latents.shape), dtype=float)],
            outputs=[ct.TensorType(name="frames", dtype=float)],
            skip_model_load=True,  # loading needs macOS
        )
        model.save(str(job.path))
    return Lowered(settings={"minimum_deployment_target": DEPLOYMENT_TARGET, "format": "mlprogram"})


TARGET = Target(
    name="ios",
    extra="ios",
    runtime="coreml",
    filename="decoder.mlpackage",
    packages=("coremltools",),
    precisions={
        "fp32": Precision(
            REWRITES,
            Tolerance(1e-3, "fp32 sums in another order, as on the other targets"),
        ),
        "fp16": Precision(
            # Before anything else, while the norm still is one recognisable pattern.
            (safe_rms_norm.REWRITE, *REWRITES),
            Tolerance(
                0.05,
                "fp16 rounding through the stack: at most 0.008 in the reference evaluator, on tiny, ltx, hunyuan",
            ),
            torch.float16,
        ),
    },
    lower=lower,
    limits=limits,
)
