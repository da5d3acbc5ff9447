"""From a decoder to a bundle: capture, rewrite, check, lower, golden tensors."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from handheld.runtime.bundle import Bundle, BundleWriter
from handheld.runtime.manifest import Method, RewriteRecord, TensorSpec

from .choice import Choice
from .errors import ExportError
from .quiet import quiet
from .rewrite import apply, capture, max_rank, multiply_adds
from .target import Job, Precision, Shape, Target
from .targets import TARGETS

_RECORDED = (
    "handheld",
    "torch",
    "executorch",
    "torchao",
    "coremltools",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
)

# Rewrites are exact in real arithmetic; what is left is fp32 summation order, 2e-5 on the LTX preset.
_REWRITE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Step:
    """Progress of an export, for whoever shows it: which target, what is being done."""

    target: str
    doing: str


@dataclass(frozen=True)
class _Clip:
    """One shape to export.

    Attributes:
        method: its name in the artefacts and the golden file; None for the first shape, which each target names.
        latents, frames: golden input and output.
        calibration: in the shape of the latents, at least one.
    """

    method: str | None
    latents: Tensor
    frames: Tensor
    calibration: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Rewritten:
    """A clip's graph, rewritten for one target, and what the manifest says of that."""

    graph: fx.GraphModule
    rewrites: tuple[RewriteRecord, ...]
    settings: dict[str, Any]


def resolve_targets(names: Sequence[str], precision: str | None = None, *, installed: bool = True) -> list[Target]:
    """Targets by name, each with the precision (None: its own default) and, where `installed`, what lowering needs.

    Raises ExportError for an unknown name, a precision that a target lacks, and packages that are missing;
    nothing is exported halfway.
    """
    if not names:
        raise ExportError(f"No target given; there are: {', '.join(TARGETS)}.")
    targets = []
    faults = []
    for name in dict.fromkeys(names):
        if name not in TARGETS:
            faults.append(f"no target {name!r}; there are: {', '.join(TARGETS)}")
            continue
        target = TARGETS[name]
        target.precision(precision or target.default_precision)
        if installed and (missing := target.missing()):
            faults.append(f"target {name} needs {', '.join(missing)}: pip install 'handheld[{target.extra}]'")
        targets.append(target)
    if faults:
        raise ExportError("; ".join(faults) + ".")
    return targets


def export(
    model: nn.Module,
    latents: Tensor,
    out: str | Path,
    *,
    targets: Sequence[Target],
    precision: str | None = None,
    calibration: Sequence[Tensor] = (),
    more: Sequence[Tensor] = (),
    name: str,
    provenance: Mapping[str, Any],
    overwrite: bool = False,
    progress: Callable[[Step], None] = lambda step: None,
) -> Bundle:
    """Lower a decoder to one artefact per target and write them as a bundle.

    Args:
        model: latents (1, C, T', H', W') to frames (1, 3, T, H, W), both NCTHW; in fp32.
        latents: an example, which fixes the shape and becomes the golden input; best real ones.
        out: the bundle's folder, which must not exist unless `overwrite`.
        targets: from `resolve_targets`.
        precision: of every artefact, a name that each target has; None is each target's own default. The golden
            output stays fp32 eager.
        calibration: latents in the examples' shapes for precisions that quantise activations; a shape that has
            none is calibrated on its example.
        more: examples in other shapes, each of which becomes one more method or function of every artefact.
        name: for people, in the manifest.
        provenance: where the weights come from; the manifest keeps it.
        progress: called before each step.

    Returns:
        The bundle, in its place.

    Raises:
        ExportError: latents that are no single fp32 clip, calibration latents unlike them, a shape that is given
            twice, several shapes for a target whose artefacts hold one, a model that torch.export or a target
            refuses, or a rewritten graph that does not compute what the model does (the difference is in the
            message).
        BundleError: an output folder that cannot be written.
    """
    examples = (latents, *more)
    _check_examples(examples, targets)
    _check_calibration(calibration, examples)
    model = model.eval()
    with BundleWriter(out, overwrite=overwrite) as writer:
        progress(Step("", "running the model for the golden output"))
        clips = tuple(_clip(model, example, calibration, first=example is latents) for example in examples)
        for target in targets:
            _lower(model, clips, target, precision or target.default_precision, writer, progress)
        progress(Step("", "hashing and writing the bundle"))
        for clip in clips:
            writer.set_golden({"latents": clip.latents.numpy()}, {"frames": clip.frames.numpy()}, clip.method)
        parameters = sum(p.numel() for p in model.parameters())
        writer.describe(
            name=name,
            provenance={**provenance, "parameters": parameters},
            versions=versions(),
            inputs=[
                TensorSpec("latents", tuple(latents.shape), description="As the encoder emits them, unnormalised.")
            ],
            outputs=[
                TensorSpec(
                    "frames",
                    tuple(clips[0].frames.shape),
                    range=(-1.0, 1.0),
                    description="RGB, nominal range, not clamped.",
                )
            ],
        )
    return writer.bundle


def _check_examples(examples: Sequence[Tensor], targets: Sequence[Target]) -> None:
    for latents in examples:
        if latents.ndim != 5 or latents.shape[0] != 1 or latents.dtype != torch.float32:
            raise ExportError(
                f"Latents are {tuple(latents.shape)} {latents.dtype}; one clip (1, C, T, H, W) in float32 is "
                "needed."
            )
    shapes = [tuple(latents.shape) for latents in examples]
    if twice := sorted({str(shape) for shape in shapes if shapes.count(shape) > 1}):
        raise ExportError(f"Latents of shape {', '.join(twice)} are given twice; give each shape once.")
    single = [target.name for target in targets if not target.several_shapes]
    if len(shapes) > 1 and single:
        able = ", ".join(name for name, target in TARGETS.items() if target.several_shapes)
        raise ExportError(
            f"Target {', '.join(single)} holds one shape, and {len(shapes)} are given: export once per shape, or "
            f"use {able}."
        )


def _check_calibration(calibration: Sequence[Tensor], examples: Sequence[Tensor]) -> None:
    wanted = [(example.shape, example.dtype) for example in examples]
    for clip in calibration:
        if (clip.shape, clip.dtype) not in wanted:
            raise ExportError(
                f"Calibration latents are {tuple(clip.shape)} {clip.dtype}; the export is for "
                f"{' and '.join(f'{tuple(shape)} {dtype}' for shape, dtype in wanted)}: encode clips of that size, "
                "or export for theirs."
            )


def _clip(model: nn.Module, latents: Tensor, calibration: Sequence[Tensor], *, first: bool) -> _Clip:
    with torch.no_grad():
        frames = model(latents)
    *_, t, h, w = frames.shape
    own = tuple(clip for clip in calibration if clip.shape == latents.shape)
    return _Clip(None if first else f"shape_{h}x{w}x{t}", latents, frames, own or (latents,))


def _lower(
    model: nn.Module,
    clips: Sequence[_Clip],
    target: Target,
    precision_name: str,
    writer: BundleWriter,
    progress: Callable[[Step], None],
) -> None:
    """Add one target's artefact to the bundle."""
    start = time.perf_counter()
    precision = target.precision(precision_name)
    rewritten = [_rewrite(model, clip, target, precision, progress) for clip in clips]
    progress(Step(target.name, f"lowering to {target.runtime} {precision_name}"))
    path = writer.artifact_dir(target.name) / target.filename
    first, *more = (
        Shape(clip.method or target.method, each.graph, clip.latents, clip.calibration)
        for clip, each in zip(clips, rewritten)
    )
    job = Job(first.graph, first.latents, precision_name, path, first.calibration, tuple(more))
    with quiet() as chatter:
        try:
            lowered = target.lower(job)
        except OSError:
            raise
        except Exception as error:
            said = [line for line in chatter.getvalue().splitlines() if "ERROR" in line]
            raise ExportError(
                f"{target.name} does not take this model: {type(error).__name__}: {error}".strip()
                + ("\n" + "\n".join(said[-3:]) if said else "")
            ) from error
    settings = {
        **lowered.settings,
        **rewritten[0].settings,
        "costs": "; ".join(step.costs().source for step in precision.rewrites if isinstance(step, Choice)),
    }
    if more:
        settings["other_shapes"] = {
            shape.method: {**each.settings, "rewrites": [asdict(record) for record in each.rewrites]}
            for shape, each in zip(more, rewritten[1:])
        }
    writer.add_artifact(
        name=target.name,
        target=target.name,
        runtime=target.runtime,
        path=f"{target.name}/{target.filename}",
        precision=precision_name,
        tolerance=precision.tolerance,
        methods=[
            Method(clip.method or target.method, (tuple(clip.latents.shape),), (tuple(clip.frames.shape),))
            for clip in clips
        ],
        input_dtype=lowered.input_dtype,
        output_dtype=lowered.output_dtype,
        settings=settings,
        rewrites=rewritten[0].rewrites,
        delegation=lowered.delegation,
        lowering_seconds=round(time.perf_counter() - start, 3),
    )


def _rewrite(
    model: nn.Module, clip: _Clip, target: Target, precision: Precision, progress: Callable[[Step], None]
) -> _Rewritten:
    """Capture a clip's graph, rewrite it for a target and check that it still computes what the model does."""
    progress(Step(target.name, "capturing the graph"))
    graph = capture(model, (clip.latents,))
    before = {"max_rank": max_rank(graph), "multiply_adds": multiply_adds(graph)}
    progress(Step(target.name, "rewriting"))
    applied = apply(graph, precision.rewrites)
    after = {"max_rank": max_rank(graph), "multiply_adds": multiply_adds(graph)}
    progress(Step(target.name, "checking the rewritten graph"))
    _check_same_function(graph, clip.latents, clip.frames, target.name, applied)
    return _Rewritten(graph, tuple(applied), {"captured": before, "rewritten": after})


def _check_same_function(
    graph: nn.Module, latents: Tensor, frames: Tensor, target: str, applied: Sequence[RewriteRecord]
) -> None:
    with torch.no_grad():
        difference = (graph(latents) - frames).abs().max().item()
    allowed = _REWRITE_TOLERANCE * max(1.0, frames.abs().max().item())
    if not difference <= allowed:  # also catches NaN
        used = ", ".join(entry.name for entry in applied if entry.applied)
        raise ExportError(
            f"After rewriting for {target}, the graph differs from the model by {difference:.3g} (allowed: "
            f"{allowed:.3g}). One of these rewrites is wrong for this model: {used}. Please report it."
        )


def versions() -> dict[str, str]:
    """Installed versions of what has a hand in a bundle."""
    found = {}
    for package in _RECORDED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
