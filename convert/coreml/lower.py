"""Core ML ML programs, for iOS and macOS."""

from __future__ import annotations

import collections
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from handheld.runtime.manifest import Tolerance

from ..choice.choose import Choice
from ..choice.costs import shipped_table
from ..graph.rewrite import GraphPass
from ..pixels import output_dtype
from ..quiet import quiet
from ..rewrites import (
    batch_in_time,
    cancel_layouts,
    conv3d_taps,
    interleave_frames,
    merge_border_taps,
    pad_frames,
    pixel_shuffle,
)
from ..rewrites.first import first
from ..target import FP16_MIN_PSNR_DB, Job, Lowered, Precision, Target
from .limits import limits
from .weights import compressed

# Multi-op patterns come first, while the ops that they are made of are still there.
_AFTER: tuple[GraphPass, ...] = (
    # Core ML refuses the rank 6 in it.
    interleave_frames.REWRITE,
    # coremltools converts pixel_shuffle at rank 4 only.
    pixel_shuffle.FRAMES,
    # 3D convolution runs on the GPU only, and only since iOS 17 (apple/coremltools #1368).
    Choice((merge_border_taps.REWRITE, conv3d_taps.REWRITE), partial(shipped_table, "coreml")),
    # Everything else that is still of rank 5.
    pad_frames.REWRITE,
    batch_in_time.REWRITE,
    # Last: the others leave layout changes in pairs.
    cancel_layouts.REWRITE,
)

REWRITES: tuple[GraphPass, ...] = (*first(), *_AFTER)
HALF_REWRITES: tuple[GraphPass, ...] = (*first(half=True), *_AFTER)

# The function that Core ML runs where none is named.
METHOD = "main"

FP32 = Precision(REWRITES, Tolerance(1e-3, "fp32 sums in another order, as on the other targets"))
FP16 = Precision(
    HALF_REWRITES,
    Tolerance(
        0.05,
        "fp16 rounding through the stack: at most 0.019 in the reference evaluator, on tiny, ltx, hunyuan, dc",
        min_psnr_db=FP16_MIN_PSNR_DB,
    ),
    torch.float16,
)


def _compressed(bits: int, min_psnr_db: float, measured: str) -> Precision:
    reason = f"{bits}-bit weights, fp16 computation: {measured} in the reference evaluator, random weights"
    return Precision(HALF_REWRITES, Tolerance(None, reason, min_psnr_db=min_psnr_db), torch.float16)


PRECISIONS = {
    "fp16": FP16,
    "fp32": FP32,
    "int8": _compressed(8, 40, "54.0 dB on tiny, 48.4 on ltx"),
    "pal8": _compressed(8, 40, "54.2 dB on tiny, 48.8 on ltx"),
    "pal6": _compressed(6, 30, "42.2 dB on tiny, 37.0 on ltx"),
    "pal4": _compressed(4, 20, "30.1 dB on tiny, 26.1 on ltx"),
}

# Several tables a weight, one for each group of output channels, are an operation of iOS 18.
GROUPED = {
    "pal6g8": _compressed(6, 30, "43.1 dB on tiny"),
    "pal4g8": _compressed(4, 20, "31.1 dB on tiny"),
}


def lower(deployment_target: str, job: Job) -> Lowered:
    """Write an `.mlpackage` folder; computation in fp32 for that precision, else in fp16.

    I/O is in fp32, of a streamed segment in the dtype of the computation: what it takes and gives was or will be
    rounded to it anyway, and states are half as large. Several shapes are functions of one package, which stores
    equal weights once.
    """
    with quiet():
        model = _converted(deployment_target, job, job.graph, job.inputs)
        if job.more:
            with tempfile.TemporaryDirectory(dir=job.path.parent) as folder:
                _save_functions(deployment_target, job, model, Path(folder))
        else:
            model.save(str(job.path))
    dtype = _io_dtype(job)
    return Lowered(
        dtype,
        output_dtype(job.graph, dtype),
        settings={
            "minimum_deployment_target": deployment_target,
            "format": "mlprogram",
            "operations": operations_of(model),
        },
    )


def _io_dtype(job: Job) -> str:
    return "float16" if job.streamed and job.precision != "fp32" else "float32"


def _converted(deployment_target: str, job: Job, graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Any:
    """One shape as an ML program of one function."""
    import coremltools as ct

    # coremltools takes the decomposed dialect only.
    program = torch.export.export(graph, inputs).run_decompositions({})
    dtype = np.dtype(_io_dtype(job)).type
    given = np.dtype(output_dtype(graph, _io_dtype(job))).type
    model = ct.convert(
        program,
        minimum_deployment_target=ct.target[deployment_target],
        compute_precision=ct.precision.FLOAT32 if job.precision == "fp32" else ct.precision.FLOAT16,
        inputs=[
            ct.TensorType(name=name, shape=tuple(x.shape), dtype=dtype) for name, x in zip(job.input_names, inputs)
        ],
        outputs=[ct.TensorType(name=name, dtype=given) for name in job.output_names],
        skip_model_load=True,  # loading needs macOS
    )
    return compressed(model, job.precision)


def _save_functions(deployment_target: str, job: Job, first: Any, folder: Path) -> None:
    """Write a package of all shapes; `folder` is empty and takes the packages of one that it is made from."""
    from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction

    functions = MultiFunctionDescriptor()
    functions.default_function_name = METHOD
    for shape in job.shapes(METHOD):
        model = first
        if shape.method != METHOD:
            model = _converted(deployment_target, job, shape.graph, shape.inputs)
        package = str(folder / f"{shape.method}.mlpackage")
        model.save(package)
        functions.add_function(package, src_function_name="main", target_function_name=shape.method)
    save_multifunction(functions, str(job.path))


def operations_of(model: Any) -> dict[str, int]:
    """How many operations of each kind an ML program has, constants apart."""
    functions = model.get_spec().mlProgram.functions
    blocks = [block for f in functions.values() for block in f.block_specializations.values()]
    kinds = collections.Counter(op.type for block in blocks for op in block.operations)
    return {kind: count for kind, count in sorted(kinds.items()) if kind != "const"}


def _target(name: str, deployment_target: str, *, newest: bool = False) -> Target:
    """`newest`: with what iOS 18 brought, grouped tables and several functions."""
    return Target(
        name=name,
        extra="ios",
        runtime="coreml",
        filename="decoder.mlpackage",
        packages=("coremltools",),
        precisions={**PRECISIONS, **GROUPED} if newest else PRECISIONS,
        lower=partial(lower, deployment_target),
        limits=limits,
        default_precision="fp16",
        method=METHOD,
        several_shapes=newest,
        streams=True,
        pixel_form="int32",
    )


# The oldest OS with compressed weights; what most phones have; the newest operations, and several functions.
IOS16 = _target("ios16", "iOS16")
TARGET = _target("ios", "iOS17")
IOS18 = _target("ios18", "iOS18", newest=True)
