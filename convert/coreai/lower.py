"""Core AI assets, for iOS 27 and macOS 27 on: converted and, unlike Core ML's programs, executed on Linux too."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch
from torch import Tensor

from handheld.runtime.manifest import Tolerance

from ..coreml.lower import HALF_REWRITES, REWRITES
from ..pixels import output_dtype
from ..quiet import quiet
from ..target import Job, Lowered, Precision, Shape, Target, in_half
from .limits import limits
from .products import protect_products
from .weights import account, compressed

# The function of the first shape.
METHOD = "main"

# Core AI takes graphs as they are captured, 3D convolutions and rank 8 included. The rewrites are those of Core ML,
# as the units are: the neural engine rejects rank 6, and Apple's GPU convolves in 2D much faster than in 3D.
FP32 = Precision(REWRITES, Tolerance(1e-3, "fp32 sums in another order, as on the other targets"))
FP16 = Precision(
    HALF_REWRITES,
    Tolerance(
        0.05,
        "fp16 rounding through the stack: 0.005 to 0.03 and 65 to 70 dB in Core AI on the CPU, on tiny and ltx, "
        "random weights",
        min_psnr_db=60,
    ),
    torch.float16,
)


def _smaller(bits: int, min_psnr_db: float, measured: str) -> Precision:
    reason = f"{bits}-bit weights, fp16 computation: {measured} in Core AI on the CPU, random weights"
    return Precision(HALF_REWRITES, Tolerance(None, reason, min_psnr_db=min_psnr_db), torch.float16)


PRECISIONS = {
    "fp16": FP16,
    "fp32": FP32,
    "int8": _smaller(8, 40, "53.7 dB on tiny, 48.5 on ltx"),
    "int4": _smaller(4, 20, "29.7 dB on tiny, 25.0 on ltx"),
    "pal8": _smaller(8, 40, "54.1 dB on tiny, 47.7 on ltx"),
    "pal6": _smaller(6, 30, "42.5 dB on tiny, 37.5 on ltx"),
    "pal4": _smaller(4, 20, "30.7 dB on tiny, 26.1 on ltx"),
}


def lower(job: Job) -> Lowered:
    """Write an `.aimodel` folder; it takes, computes and gives fp16, in precision `fp32` fp32.

    Several shapes are functions of one asset, which stores equal weights once. The asset's own metadata carries
    where the weights come from.
    """
    with quiet():
        import coreai.authoring  # noqa: F401  before coreai_torch, which imports its compiler

        shapes = [_typed(shape, job.precision) for shape in job.shapes(METHOD)]
        program = compressed(_converted(job, shapes), job.precision)
        summary = program.save_asset(job.path, metadata=_metadata(job)).summary()
    operations = dict(summary.operation_distribution)
    dtype = "float32" if job.precision == "fp32" else "float16"
    return Lowered(
        dtype,
        output_dtype(job.graph, dtype),
        settings={
            "minimum_deployment_target": "iOS27",
            "format": "aimodel",
            "operations": {kind: count for kind, count in operations.items() if kind != "constant"},
            "weights": account(job.precision, [shape.graph for shape in shapes], operations, summary.storage_types),
        },
    )


def _typed(shape: Shape, precision: str) -> Shape:
    """A shape in what the precision computes in: the asset has the types of its graph."""
    if precision == "fp32":
        return shape
    return Shape(shape.method, *in_half(shape.graph, shape.inputs), shape.calibration)


def _converted(job: Job, shapes: list[Shape]) -> Any:
    """All shapes as functions of one program."""
    from coreai_torch import TorchConverter, get_decomp_table

    converter = TorchConverter()
    for shape in shapes:
        # Core AI's converter takes the decomposed dialect only.
        program = _exported(shape.graph, shape.inputs).run_decompositions(get_decomp_table())
        protect_products(program)
        converter.add_exported_program(
            program,
            input_names=list(job.input_names),
            output_names=list(job.output_names),
            entrypoint_name=shape.method,
        )
    return converter.to_coreai()


def _exported(graph: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return torch.export.export(graph, inputs)


def _metadata(job: Job) -> Any:
    """What an app reads with the asset: what it computes, and where its weights come from."""
    from coreai.runtime import AIModelAssetMetadata

    metadata = AIModelAssetMetadata()
    metadata.model_description = (
        f"{', '.join(job.input_names)} to {', '.join(job.output_names)}, {job.precision}, by handheld."
    )
    metadata.set_custom("handheld", {"version": importlib.metadata.version("handheld"), **job.provenance})
    return metadata


TARGET = Target(
    name="ios27",
    extra="coreai",
    runtime="coreai",
    filename="decoder.aimodel",
    packages=("coreai", "coreai_torch", "coreai_opt"),
    precisions=PRECISIONS,
    lower=lower,
    limits=limits,
    default_precision="fp16",
    method=METHOD,
    several_shapes=True,
    streams=True,
)
