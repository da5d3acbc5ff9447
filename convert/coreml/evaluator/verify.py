"""Verification of Core ML artefacts on machines without Core ML.

What passes here is the program: that its operations, with its weights and its roundings, compute what the model
does. What Core ML's compiler and a device make of it, only a Mac or a phone shows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import fx

from handheld.runtime.bundle import Bundle
from handheld.runtime.errors import BundleError, RuntimeFailure, RuntimeMissing
from handheld.runtime.manifest import Artifact, Method, Tolerance
from handheld.runtime.parity import compare, compare_stream
from handheld.runtime.pixels import as_told
from handheld.runtime.profile_record import Parity
from handheld.runtime.stream_plan import Segment, StreamPlan
from handheld.runtime.streaming import StreamSession
from handheld.runtime.verify import Verdict

from ...errors import ExportError
from .delegate import extract_package
from .evaluate import Overflow, evaluate
from .localize import DIVERGED, describe, first_mismatch, first_rounded_off
from .package import UnsupportedProgram, load_program
from .program import MLProgram

REFERENCE = "reference evaluator"

# Runtimes that execute ML programs.
REFERENCE_RUNTIMES = ("coreml", "executorch-coreml")


def with_reference(bundle: Bundle, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts, with those of Core ML artefacts that cannot run here replaced by the reference evaluator's."""

    def judged(verdict: Verdict) -> Verdict:
        known = verdict.artifact.runtime in REFERENCE_RUNTIMES
        return verify_coreml(bundle, verdict.artifact) if known and verdict.status == "not verified" else verdict

    return [judged(verdict) for verdict in verdicts]


def verify_coreml(bundle: Bundle, artifact: Artifact, graph: fx.GraphModule | None = None) -> Verdict:
    """Evaluate an ML program on the golden inputs of all its shapes, as typed, and compare with the golden outputs.

    The program is an `.mlpackage`, or all that a `.pte` file hands to Core ML; each shape is one of its functions.

    Hashes are checked before anything is loaded. An artefact fails where the largest error is above its tolerance,
    and where an operation makes infinity or NaN of finite values, even if the output hides it; the reason names
    the operation and its source module. A program that the evaluator does not know is "not verified", as is any
    where coremltools is not installed.

    Args:
        graph: the rewritten torch graph of the first shape, for who has it: an operation that computes something
            else than its torch node is then named too.

    Returns:
        The verdict: that of the first shape that does not pass, if there is one, else the worst figures of all. Its
        `runtime_version` is "reference evaluator" once the program was loaded.
    """
    none = Verdict(artifact, "fail", "", None, None, artifact.tolerance, None)
    try:
        bundle.check(artifact)
    except BundleError as error:
        return replace(none, reason=str(error))
    passed = []
    for method, shape in zip(artifact.methods, bundle.shapes):
        if artifact.stream is not None:
            verdict = _verify_stream(bundle, artifact, artifact.stream, shape)
        else:
            verdict = _verify_shape(bundle, artifact, method, shape, graph if shape is None else None)
        if verdict.status != "pass":
            where = f"In the shape {method.inputs[0]}: " if len(artifact.methods) > 1 else ""
            return replace(verdict, reason=where + verdict.reason)
        passed.append(verdict)
    return replace(
        passed[0],
        max_abs_error=max(verdict.max_abs_error or 0.0 for verdict in passed),
        psnr_db=min(verdict.psnr_db for verdict in passed if verdict.psnr_db is not None),
    )


def _verify_stream(bundle: Bundle, artifact: Artifact, plan: StreamPlan, shape: str | None) -> Verdict:
    """The verdict of a streamed artefact, whose hash is right, on one clip."""
    none = Verdict(artifact, "fail", "", None, None, artifact.tolerance, None)
    faults: list[str] = []
    specs = bundle.manifest.inputs, bundle.manifest.outputs

    def load(segment: Segment) -> _Evaluated:
        path = bundle.locate(f"{artifact.path}/{segment.program}")
        return _Evaluated(load_program(path, artifact.methods[0].name), segment, faults)

    try:
        inputs, wanted = bundle.golden(shape)
        with StreamSession(plan, load, artifact, *specs) as session:
            (latents,), (golden,), (spec,) = inputs.values(), wanted.values(), bundle.manifest.outputs
            parity = compare_stream(spec, shape, session.stream(latents), golden)
    except (RuntimeMissing, UnsupportedProgram) as error:
        return replace(none, status="not verified", reason=str(error))
    except (RuntimeFailure, ExportError) as error:
        return replace(none, reason=str(error))
    none = replace(none, runtime_version=REFERENCE)
    if not parity.finite:
        return replace(none, reason=f"In the {REFERENCE}, the output holds NaN or infinity. {' '.join(faults[:1])}")
    largest, psnr = _worst((parity,))
    measured = replace(none, max_abs_error=largest, psnr_db=psnr)
    if faults:
        return replace(measured, reason=f"In the {REFERENCE}: {faults[0]}")
    if fault := artifact.tolerance.fault(largest, psnr):
        return replace(measured, reason=f"{fault}, in the {REFERENCE}.")
    return replace(measured, status="pass")


class _Evaluated:
    """A segment's program for `StreamSession`, run by the evaluator; what overflows is told in `faults`."""

    threads: int | None = None

    def __init__(self, program: MLProgram, segment: Segment, faults: list[str]) -> None:
        self.program, self.segment, self.faults = program, segment, faults

    def call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        found = evaluate(self.program, dict(zip(self.segment.input_names, inputs)))
        if found.overflow:
            self.faults.append(f"in {self.segment.program}, {_overflow_text(found.overflow)}")
        return [found.outputs[name].astype(array.dtype) for array, name in zip(outputs, self.segment.output_names)]

    def close(self) -> None:
        """Nothing is held outside of Python."""


def _verify_shape(
    bundle: Bundle, artifact: Artifact, method: Method, shape: str | None, graph: fx.GraphModule | None
) -> Verdict:
    """The verdict of one method of an artefact whose hash is right."""
    none = Verdict(artifact, "fail", "", None, None, artifact.tolerance, None)
    try:
        inputs, wanted = bundle.golden(shape)
        program = _program_of(bundle, artifact, method)
    except (RuntimeMissing, UnsupportedProgram) as error:
        return replace(none, status="not verified", reason=str(error))
    except (BundleError, ExportError) as error:
        return replace(none, reason=str(error))
    none = replace(none, runtime_version=REFERENCE)
    if artifact.runtime != "coreml":  # a delegate is called by position
        inputs = dict(zip((variable.name for variable in program.inputs), inputs.values()))
        wanted = dict(zip(program.outputs, wanted.values()))
    try:
        found = evaluate(program, inputs)
    except ExportError as error:
        return replace(none, reason=str(error))
    outputs = {
        name: as_told(spec, array) for spec, (name, array) in zip(bundle.manifest.outputs, found.outputs.items())
    }
    if wrong := _wrong_outputs(outputs, wanted):
        return replace(none, reason=f"{wrong} Export it again.")
    if not all(np.isfinite(array).all() for array in outputs.values()):
        why = f" {_overflow_text(found.overflow)}" if found.overflow else ""
        return replace(none, reason=f"In the {REFERENCE}, the output holds NaN or infinity.{why}")
    largest, psnr = _difference(bundle, outputs, wanted)
    measured = replace(none, max_abs_error=largest, psnr_db=psnr)
    if found.overflow:
        return replace(measured, reason=f"In the {REFERENCE}: {_overflow_text(found.overflow)}")
    if fault := artifact.tolerance.fault(largest, psnr):
        why = _explain(bundle, program, inputs, wanted, artifact.tolerance, graph)
        return replace(measured, reason=f"{fault}, in the {REFERENCE}. {why}")
    return replace(measured, status="pass")


def _program_of(bundle: Bundle, artifact: Artifact, method: Method) -> MLProgram:
    path = bundle.locate(artifact.path)
    if artifact.runtime == "coreml":
        return load_program(path, method.name)
    with tempfile.TemporaryDirectory(prefix="handheld-") as folder:
        package = extract_package(path, Path(folder), method.name)
        return load_program(package, method.name if len(artifact.methods) > 1 else "main")


def _explain(
    bundle: Bundle,
    program: MLProgram,
    inputs: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    tolerance: Tolerance,
    graph: fx.GraphModule | None,
) -> str:
    exact, psnr = _difference(bundle, evaluate(program, inputs, typed=False).outputs, wanted)
    if tolerance.fault(exact, psnr):
        text = (
            f"In fp32 arithmetic it is {exact:.3g}: not the rounding of results, but the program's operations, or "
            "its weights as stored, differ from the model's."
        )
        wrong = first_mismatch(program, graph, inputs) if graph else None
        return f"{text} The first that does is {describe(wrong[0])} (off by {wrong[1]:.1%})." if wrong else text
    found = first_rounded_off(program, inputs)
    if found is None:
        return (
            f"In fp32 arithmetic it is {exact:.3g}, and no operation is off by more than {DIVERGED:.0%}: fp16 "
            "rounding adds up."
        )
    operation, relative = found
    return (
        f"In fp32 arithmetic it is {exact:.3g}; the first operation that fp16 puts off by more than {DIVERGED:.0%} "
        f"({relative:.1%}) is {describe(operation)}."
    )


def _overflow_text(overflow: Overflow) -> str:
    operation = overflow.operation
    return (
        f"the first operation that makes {overflow.value} of finite {operation.outputs[0].dtype} values is "
        f"{describe(operation)}."
    )


def _wrong_outputs(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> str:
    shapes, expected = ({name: tuple(a.shape) for name, a in arrays.items()} for arrays in (found, wanted))
    return "" if shapes == expected else f"The program yields {shapes}, the manifest says {expected}."


def _difference(
    bundle: Bundle, found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """Largest absolute error and lowest PSNR in dB over the outputs, as `runtime.verify` has them."""
    return _worst(
        compare(spec, None, as_told(spec, found[name]), wanted[name])
        for spec, name in zip(bundle.manifest.outputs, wanted)
    )


def _worst(parities: Iterable[Parity]) -> tuple[float, float]:
    """Largest absolute error and lowest PSNR in dB; infinitely bad where an output is not finite."""
    errors, psnrs = [], []
    for parity in parities:
        errors.append(math.inf if parity.max_abs_error is None else parity.max_abs_error)
        psnrs.append(-math.inf if parity.psnr_db is None else parity.psnr_db)
    return max(errors), min(psnrs)
