"""ONNX, run by onnxruntime."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.export import Dim

from handheld.runtime.manifest import Tolerance
from handheld.runtime.session.ort import MODEL, model_of

from ..choice.choose import Choice
from ..choice.costs import shipped_table
from ..choice.sparing import sparing
from ..graph.rewrite import GraphPass, Rewrite
from ..pixels import output_dtype
from ..quiet import quiet
from ..rewrites import (
    batch_in_time,
    cancel_layouts,
    conv3d_concat,
    conv3d_taps,
    interleave_frames,
    keep_epsilon,
    merge_border_taps,
    pad_frames,
    pixel_shuffle,
    temporal_winograd,
    upsample_conv,
)
from ..rewrites.first import first
from ..target import FP16_MIN_PSNR_DB, Job, Lowered, Precision, Target, in_half
from . import quantize as qdq
from .files import save_models
from .limits import limits

# torch.onnx's name for the graph.
METHOD = "main_graph"

_COSTS = partial(shipped_table, "onnxruntime")


def _cheapest(*convolutions: Rewrite) -> Choice:
    """At each place the cheapest of `convolutions` and one 2D convolution per tap."""
    return Choice((*convolutions, conv3d_taps.REWRITE), _COSTS)


def _rewrites(*convolutions: GraphPass, half: bool = False) -> tuple[GraphPass, ...]:
    """The list, with what 3D convolutions become."""
    return (
        # Multi-op patterns first, while the ops that they are made of are still there.
        *first(half=half, norms=True),
        interleave_frames.REWRITE,
        pixel_shuffle.FRAMES,
        sparing(upsample_conv.PARTS),
        *convolutions,
        # Everything else that is still of rank 5.
        pad_frames.REWRITE,
        batch_in_time.REWRITE,
        # After batch_in_time, which would lower no sum with a constant that is one number.
        keep_epsilon.REWRITE,
        # Last: the others leave layout changes in pairs.
        cancel_layouts.REWRITE,
    )


def lower(job: Job) -> Lowered:
    """Write a folder with `model.onnx` and its weights beside it; I/O in fp16 for fp16, else in fp32.

    Each further shape is a graph of its own, `shape_24x24x3.onnx`, over the same file of weights.
    """
    half = job.precision == "fp16"
    settings: dict[str, Any] = {}
    models = {}
    with quiet():
        for shape in job.shapes(METHOD):
            graph, inputs = in_half(shape.graph, shape.inputs) if half else (shape.graph, shape.inputs)
            if job.precision == "int8":
                graph, plan = qdq.quantize(graph, shape.calibration)
                settings.setdefault("quantized", plan.record(len(shape.calibration)))  # the first shape's
            symbols = (dict.fromkeys(job.dynamic, Dim.DYNAMIC),) if job.dynamic else None
            program = torch.onnx.export(
                torch.export.export(graph, inputs, dynamic_shapes=symbols),
                dynamo=True,
                verbose=False,
                input_names=job.input_names,
                output_names=job.output_names,
            )
            assert program is not None  # dynamo=True always returns one
            models[MODEL if shape.method == METHOD else model_of(shape.method)] = program.model
        job.path.mkdir()
        save_models(models, job.path)
    dtype = "float16" if half else "float32"
    opset = models[MODEL].opset_imports[""]
    settings = {"opset": opset, "exporter": "torch.onnx, dynamo", **settings}
    return Lowered(dtype, output_dtype(job.graph, dtype), settings=settings)


TARGET = Target(
    name="onnx",
    extra="onnx",
    runtime="onnxruntime",
    filename="decoder",
    method=METHOD,
    packages=("onnx", "onnxscript", "torchao"),
    precisions={
        "fp32": Precision(
            _rewrites(_cheapest(merge_border_taps.REWRITE, *temporal_winograd.REWRITES)),
            Tolerance(1e-3, "fp32 sums in another order: at most 2.4e-5 measured, on ltx at 256x256x9"),
        ),
        "fp16": Precision(
            _rewrites(_cheapest(merge_border_taps.REWRITE), half=True),
            Tolerance(
                0.05,
                "fp16 rounding through the whole stack: at most 0.009 measured on tiny and ltx, 75 dB on tiny, "
                "with random weights",
                min_psnr_db=FP16_MIN_PSNR_DB,
            ),
            torch.float16,
        ),
        "int8": Precision(
            # One accumulator for all taps: no sum of rounded taps, no Winograd, whose transforms overflow 8 bits.
            # Then what stays in fp32, depthwise and the one that makes the frames, and pointwise ones.
            _rewrites(conv3d_concat.REWRITE, _cheapest(merge_border_taps.REWRITE, *temporal_winograd.REWRITES)),
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
    limits=limits,
    several_shapes=True,
    streams=True,
    dynamic=True,
)
