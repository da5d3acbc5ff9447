"""ExecuTorch with the Core ML delegate, for apps on iOS that run ExecuTorch."""

from __future__ import annotations

from torch import fx

from ..coreml.limits import limits
from ..coreml.lower import FP16, FP32
from ..pixels import output_dtype
from ..quiet import quiet
from ..target import Job, Lowered, Target
from . import program as pte

DEPLOYMENT_TARGET = "iOS17"
# ExecuTorch hands several methods to Core ML as one program of several functions.
DEPLOYMENT_TARGET_OF_SEVERAL = "iOS18"


def lower(job: Job) -> Lowered:
    """Write a `.pte` file; I/O in fp32, computation in the artefact's precision."""
    deployment_target = DEPLOYMENT_TARGET_OF_SEVERAL if job.more else DEPLOYMENT_TARGET
    with quiet():
        import coremltools as ct
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition.coreml_partitioner import CoreMLPartitioner

        specs = CoreMLBackend.generate_compile_specs(
            minimum_deployment_target=ct.target[deployment_target],
            compute_precision=ct.precision.FLOAT16 if job.precision == "fp16" else ct.precision.FLOAT32,
        )
        shapes = job.shapes(pte.METHOD)
        edge = pte.to_edge({s.method: (s.graph, s.inputs) for s in shapes}, CoreMLPartitioner(compile_specs=specs))
        delegation = pte.delegation_of(edge, [s.graph for s in shapes], _refusal)
        pte.write(edge, job.path)
    settings = {"backend": "Core ML", "minimum_deployment_target": deployment_target}
    return Lowered(output_dtype=output_dtype(job.graph, "float32"), settings=settings, delegation=delegation)


def _refusal(node: fx.Node) -> str:
    """The partitioner asks coremltools, which knows no more than yes and no."""
    return "coremltools converts no such op"


TARGET = Target(
    name="ios-executorch",
    extra="android,ios",
    runtime="executorch-coreml",
    filename="decoder.pte",
    packages=("executorch", "coremltools"),
    precisions={"fp16": FP16, "fp32": FP32},
    lower=lower,
    limits=limits,
    default_precision="fp16",
    method=pte.METHOD,
    several_shapes=True,
    pixel_form="int32",
)
