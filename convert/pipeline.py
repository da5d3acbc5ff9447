"""From a decoder to a bundle: capture, rewrite, check, lower, golden tensors."""

from __future__ import annotations

import importlib.metadata
import math
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handheld.models import LatentStatistics
from handheld.models.streaming import stream_frames
from handheld.runtime.bundle import Bundle, BundleWriter
from handheld.runtime.manifest import Method, RewriteRecord, Statistics, TensorSpec, Tolerance
from handheld.runtime.stream_plan import StreamPlan
from handheld.runtime.verify import run_once

from .dynamic import Dynamic, capture_dynamic, other_sizes
from .errors import ExportError
from .lowering import Progress, Rewritten, Step, costs_of, difference, lower, rewritten_for
from .pixels import append_rgba8, check_pixels, in_levels, layout_of, to_rgba8
from .streaming import PassCut
from .streaming.lower import check_streams, lower_stream
from .streaming.units import spec_of, units_of
from .target import Job, Lowered, Shape, Target, leave_out
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
    "coreai-core",
    "coreai-torch",
    "coreai-opt",
    "numpy",
)

# Golden frames of a streamed export are decoded whole up to so many values, each of which takes some 200 bytes with
# hunyuan, the largest. Larger clips are streamed in eager mode too, so many latent frames at a time.
_WHOLE_GOLDEN = 16_000_000
_GOLDEN_CHUNK = 2

# Why a streamed artefact gives floats.
STREAMED_PIXELS = (
    "A streamed artefact gives frames as floats: the decoder around its programs puts frames together from floats. "
    "Leave the 8-bit pixels out (`handheld decode` and the apps make pixels of each frame as it comes), or export "
    "whole clips."
)

# The folder of a streamed artefact.
_STREAM = "stream"


@dataclass(frozen=True)
class _Clip:
    """One shape to export.

    Attributes:
        method: its name in the artefacts and the golden file; None for the first shape, which each target names.
        latents, frames: golden input and output.
        calibration: in the shape of the latents, at least one.
        pixels: the golden output where artefacts give 8-bit RGBA, else None.
    """

    method: str | None
    latents: Tensor
    frames: Tensor
    calibration: tuple[Tensor, ...]
    pixels: Tensor | None = None

    @property
    def given(self) -> Tensor:
        """What artefacts give."""
        return self.frames if self.pixels is None else self.pixels


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
    stream: Sequence[PassCut] | None = None,
    name: str,
    provenance: Mapping[str, Any],
    overwrite: bool = False,
    without: Collection[str] = (),
    validate: bool = False,
    value_range: tuple[float, float] | None = None,
    statistics: LatentStatistics | None = None,
    pixels: str = "float",
    dynamic: bool = False,
    progress: Progress = lambda step: None,
) -> Bundle:
    """Lower a decoder to one artefact per target and write them as a bundle.

    Args:
        model: latents (1, C, T', H', W') to frames (1, 3, T, H, W), both NCTHW, or (1, C, H', W') to an image
            (1, 3, H, W); in fp32.
        latents: an example, which fixes the shape and becomes the golden input; best real ones.
        out: the bundle's folder, which must not exist unless `overwrite`.
        targets: from `resolve_targets`.
        precision: of every artefact, a name that each target has; None is each target's own default. The golden
            output stays fp32 eager.
        calibration: latents in the examples' shapes for precisions that quantise activations; a shape that has
            none is calibrated on its example.
        more: examples in other shapes, each of which becomes one more method or function of every artefact. Of a
            streamed artefact, clips of other lengths that it is verified on.
        stream: cut the decoder, which declares its layers, like this (`streaming.default_cuts`) and export
            artefacts that stream: they decode clips of any length, of the latents' height and width.
        name: for people, in the manifest.
        provenance: where the weights come from; the manifest keeps it.
        without: names of rewrites to leave out, for all targets, also where they are one of several options.
        validate: check each place of each rewrite as it is applied, on the example.
        value_range: nominal range of the pictures; None takes the model's own, if it has one, else [-1, 1].
        statistics: of the latents, for the manifest; None takes the model's own, if it has any.
        pixels: `float`, frames as the model gives them; or `rgba8`, which the artefacts make of them: uint8
            (1, T, H, W, 4), of images (1, H, W, 4), from the value range. Tolerances are then in levels.
        dynamic: keep time, height and width symbols, for targets that can: one graph, as captured, takes any size.
            Rewrites need fixed sizes, so none is applied. It is verified on the examples; on one alone and two
            sizes made of it.
        progress: called before each step.

    Returns:
        The bundle, in its place. Each artefact that this machine can run has run once.

    Raises:
        ExportError: latents that are no single fp32 clip, calibration latents unlike them, a shape that is given
            twice, pixels of a streamed artefact, several shapes for a target whose artefacts hold one, a target or
            precision that is not streamed, a model that torch.export or a target refuses, or a rewritten graph that
            does not compute what the model does (the message names rewrite, node and module), a name in `without`
            that no target has, and weights that hold NaN or infinity.
        RuntimeFailure: an artefact that its runtime does not load or run; the bundle is not kept.
        BundleError: an output folder that cannot be written.
    """
    check_pixels(pixels)
    targets = leave_out(targets, without)
    examples = (latents, *more)
    _check_examples(examples)
    if dynamic:
        _check_dynamic(targets, precision, pixels, streamed=stream is not None)
    elif stream is None:
        _check_shapes(examples, targets)
    else:
        if pixels != "float":
            raise ExportError(STREAMED_PIXELS)
        _check_stream(model, examples, targets, precision)
    _check_calibration(calibration, examples)
    model = model.eval()
    low, high = value_range or getattr(model, "value_range", None) or (-1.0, 1.0)
    layout = "NCHW" if latents.ndim == 4 else "NCTHW"
    normalised = bool(getattr(model, "takes_normalised", False))
    with BundleWriter(out, overwrite=overwrite, proof=run_once) as writer:
        progress(Step("", "running the model for the golden output"))
        symbolic = None
        if dynamic:
            symbolic = capture_dynamic(model, latents)
            examples = examples if more else (latents, *other_sizes(latents, symbolic.axes))
        streamed = stream is not None
        clips = tuple(
            _clip(model, example, calibration, first=example is latents, streamed=streamed) for example in examples
        )
        if pixels != "float":
            clips = tuple(replace(clip, pixels=to_rgba8(clip.frames, (low, high))) for clip in clips)
        for target in targets:
            chosen = precision or target.default_precision
            if stream is None:
                _lower(model, clips, target, chosen, provenance, writer, progress, validate, (low, high), symbolic)
            else:
                _lower_stream(model, clips, target, chosen, stream, provenance, writer, progress, validate)
        progress(Step("", "hashing and writing the bundle"))
        for clip in clips:
            writer.set_golden({"latents": clip.latents.numpy()}, {"frames": clip.given.numpy()}, clip.method)
        parameters = sum(p.numel() for p in model.parameters())
        writer.describe(
            name=name,
            provenance={**provenance, "parameters": parameters},
            versions=versions(),
            inputs=[
                TensorSpec(
                    "latents",
                    tuple(latents.shape),
                    layout=layout,
                    description="As a diffusion model gives them." if normalised else "As the encoder emits them.",
                    statistics=_recorded(statistics or getattr(model, "statistics", None)),
                    normalised=normalised,
                )
            ],
            outputs=[
                TensorSpec(
                    "frames",
                    tuple(clips[0].given.shape),
                    dtype="float32" if pixels == "float" else "uint8",
                    layout=layout_of(layout, pixels),
                    range=(float(low), float(high)) if pixels == "float" else (0.0, 255.0),
                    description="RGB, nominal range, not clamped." if pixels == "float" else "RGBA, alpha 255.",
                )
            ],
        )
    return writer.bundle


def _recorded(statistics: LatentStatistics | None) -> Statistics | None:
    return Statistics(statistics.mean, statistics.std, statistics.scaling) if statistics is not None else None


def _check_examples(examples: Sequence[Tensor]) -> None:
    for latents in examples:
        if latents.ndim not in (4, 5) or latents.shape[0] != 1 or latents.dtype != torch.float32:
            raise ExportError(
                f"Latents are {tuple(latents.shape)} {latents.dtype}; one clip (1, C, T, H, W) or one image "
                "(1, C, H, W) in float32 is needed."
            )
    if len({latents.ndim for latents in examples}) > 1:
        raise ExportError("Latents of clips and of images are given together: export them apart.")
    shapes = [tuple(latents.shape) for latents in examples]
    if twice := sorted({str(shape) for shape in shapes if shapes.count(shape) > 1}):
        raise ExportError(f"Latents of shape {', '.join(twice)} are given twice; give each shape once.")


def _check_shapes(shapes: Sequence[Tensor], targets: Sequence[Target]) -> None:
    single = [target.name for target in targets if not target.several_shapes]
    if len(shapes) > 1 and single:
        able = ", ".join(name for name, target in TARGETS.items() if target.several_shapes)
        raise ExportError(
            f"Target {', '.join(single)} holds one shape, and {len(shapes)} are given (Core ML holds several, as "
            f"functions of one program, since iOS 18): export once per shape, or use {able}."
        )


def _check_stream(
    model: nn.Module, examples: Sequence[Tensor], targets: Sequence[Target], precision: str | None
) -> None:
    check_clips(examples[0])
    units_of(model)
    spec_of(model)
    if len(planes := {tuple(latents.shape[3:]) for latents in examples}) > 1:
        raise ExportError(
            f"A streamed artefact has one height and width, for any number of frames; latents of {sorted(planes)} "
            "are given. Export once per size."
        )
    for target in targets:
        check_streams(target, precision or target.default_precision)


def _check_dynamic(targets: Sequence[Target], precision: str | None, pixels: str, *, streamed: bool) -> None:
    able = ", ".join(name for name, target in TARGETS.items() if target.dynamic)
    if fixed := [target.name for target in targets if not target.dynamic]:
        raise ExportError(
            f"Target {', '.join(fixed)} has fixed sizes; dynamic ones are for {able}. Give each size with --shape: "
            f"{', '.join(name for name, target in TARGETS.items() if target.several_shapes)} hold several."
        )
    if streamed or pixels != "float":
        what = "a streamed artefact" if streamed else "an artefact that gives pixels"
        raise ExportError(
            f"Dynamic sizes do not go with {what}: its graph needs fixed ones. Leave one of both out."
        )
    for target in targets:
        name = precision or target.default_precision
        if target.precision(name).calibrated:
            raise ExportError(
                f"Dynamic sizes do not go with {name}, whose ranges are measured in a rewritten graph: take fp32 "
                "or fp16, or give each size with --shape."
            )


def check_clips(latents: Tensor) -> None:
    """Raise ExportError for latents of an image, which has no frames to stream."""
    if latents.ndim == 4:
        raise ExportError(
            f"Latents {tuple(latents.shape)} are of one image, NCHW: there are no frames to stream, whatever "
            "layers the decoder declares. Export it without streaming."
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


def _too_large_for_whole(model: nn.Module, latents: Tensor) -> bool:
    return math.prod(_frames_shape(model, latents)) > _WHOLE_GOLDEN


def _frames_shape(model: nn.Module, latents: Tensor) -> tuple[int, ...]:
    _, _, t, h, w = latents.shape
    spec = spec_of(model)
    return 1, 3, spec.frames(t), h * spec.spatial, w * spec.spatial


def _clip(
    model: nn.Module, latents: Tensor, calibration: Sequence[Tensor], *, first: bool, streamed: bool
) -> _Clip:
    with torch.no_grad():
        if streamed and _too_large_for_whole(model, latents):
            frames = _streamed(model, latents)
        else:
            frames = model(latents)
    _refuse_frames(model, latents, frames)
    _, _, *time, h, w = frames.shape
    own = tuple(clip for clip in calibration if clip.shape == latents.shape)
    size = "x".join(map(str, (h, w, *time)))
    return _Clip(None if first else f"shape_{size}", latents, frames.float(), own or (latents,))


def _refuse_frames(model: nn.Module, latents: Tensor, frames: object) -> None:
    """Raise ExportError for what a model gives that is not RGB of a clip or an image."""
    if not isinstance(frames, Tensor) or frames.ndim != latents.ndim or frames.shape[:2] != (1, 3):
        given = tuple(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
        raise ExportError(
            f"Of latents {tuple(latents.shape)} the {type(model).__name__} makes {given}; one tensor of RGB "
            "with as many axes, (1, 3, ...), is needed."
        )


def _streamed(model: nn.Module, latents: Tensor) -> Tensor:
    """Frames of a clip that is too large to be held: decoded in pieces into a temporary file, which they map."""
    layered: Any = model  # `_check_stream` has seen its layers
    shape = _frames_shape(model, latents)
    _, channels, count, height, width = shape
    plane = 4 * height * width
    with tempfile.TemporaryFile(prefix="handheld-") as file:
        done = 0
        for piece in stream_frames(layered, latents, _GOLDEN_CHUNK, 1):
            _refuse_frames(model, latents, piece)
            frames = piece[0].float().contiguous().numpy()
            try:
                for channel in range(channels):
                    file.seek((channel * count + done) * plane)
                    file.write(frames[channel].tobytes())
                file.flush()
            except OSError as error:
                raise ExportError(
                    f"The golden frames wait in {tempfile.gettempdir()}, which does not take "
                    f"{math.prod(shape) * 4:,} bytes: {error.strerror}. Make room, or point TMPDIR elsewhere."
                ) from error
            done += frames.shape[1]
        return torch.from_numpy(np.memmap(file, np.float32, "c", shape=shape))


def _lower(
    model: nn.Module,
    clips: Sequence[_Clip],
    target: Target,
    precision_name: str,
    provenance: Mapping[str, Any],
    writer: BundleWriter,
    progress: Progress,
    validate: bool,
    value_range: tuple[float, float],
    symbolic: Dynamic | None,
) -> None:
    """Add one target's artefact to the bundle."""
    start = time.perf_counter()
    precision = target.precision(precision_name)
    rewritten = (
        [_as_captured(symbolic, clips, target, progress)]
        if symbolic is not None
        else [
            rewritten_for(
                *(target, precision, model, (clip.latents,), (clip.frames,), progress),
                validate=validate,
                calibration=clip.calibration,
            )
            for clip in clips
        ]
    )
    tolerance = precision.tolerance
    if clips[0].pixels is not None:
        # After the rewritten graph was checked: at the edge of a level nothing can be.
        for each in rewritten:
            append_rgba8(each.graph, target.pixel_form, value_range)
        tolerance = in_levels(tolerance, value_range)
    progress(Step(target.name, f"lowering to {target.runtime} {precision_name}"))
    path = writer.artifact_dir(target.name) / target.filename
    first, *more = (  # of a dynamic artefact, one graph is all
        Shape(method, each.graph, (clip.latents,), clip.calibration)
        for method, clip, each in zip(_methods(clips, target), clips, rewritten)
    )
    job = Job(
        *(first.graph, first.inputs, precision_name, path, first.calibration, tuple(more)),
        provenance=provenance,
        dynamic=symbolic.axes if symbolic is not None else (),
    )
    lowered = lower(target, job)
    settings = {**lowered.settings, **rewritten[0].settings}
    if clips[0].pixels is not None:
        settings["value_range"] = [float(end) for end in value_range]  # that became [0, 255]
    if more:
        settings["other_shapes"] = {
            shape.method: {**each.settings, "rewrites": [asdict(record) for record in each.rewrites]}
            for shape, each in zip(more, rewritten[1:])
        }
    _add(
        *(writer, target, precision_name, target.filename, clips, lowered, settings, rewritten[0].rewrites, start),
        tolerance=tolerance,
        dynamic=symbolic.letters("NCHW" if clips[0].latents.ndim == 4 else "NCTHW") if symbolic is not None else (),
    )


def _lower_stream(
    model: nn.Module,
    clips: Sequence[_Clip],
    target: Target,
    precision_name: str,
    cuts: Sequence[PassCut],
    provenance: Mapping[str, Any],
    writer: BundleWriter,
    progress: Progress,
    validate: bool,
) -> None:
    """Add one target's streamed artefact to the bundle."""
    start = time.perf_counter()
    folder = writer.artifact_dir(target.name) / _STREAM
    done = lower_stream(
        model,  # type: ignore[arg-type]
        target,
        precision_name,
        cuts,
        clips[0].latents,
        folder,
        progress,
        provenance,
        validate=validate,
    )
    settings = dict(done.lowered.settings)
    _add(
        *(writer, target, precision_name, _STREAM, clips, done.lowered, settings, done.rewrites, start),
        stream=done.plan,
    )


def _add(
    writer: BundleWriter,
    target: Target,
    precision_name: str,
    filename: str,
    clips: Sequence[_Clip],
    lowered: Lowered,
    settings: dict[str, Any],
    rewrites: Sequence[RewriteRecord],
    start: float,
    stream: StreamPlan | None = None,
    tolerance: Tolerance | None = None,
    dynamic: tuple[str, ...] = (),
) -> None:
    """Register a target's artefact, which has been written since `start`."""
    precision = target.precision(precision_name)
    writer.add_artifact(
        name=target.name,
        target=target.name,
        runtime=target.runtime,
        path=f"{target.name}/{filename}",
        precision=precision_name,
        tolerance=tolerance or precision.tolerance,
        methods=[
            Method(method, (tuple(clip.latents.shape),), (tuple(clip.given.shape),))
            for method, clip in zip(_methods(clips, target), clips)
        ],
        input_dtype=lowered.input_dtype,
        output_dtype=lowered.output_dtype,
        settings={
            **settings,
            "costs": costs_of(precision),
            **({"without": list(target.left_out)} if target.left_out else {}),
        },
        rewrites=rewrites,
        delegation=lowered.delegation,
        lowering_seconds=round(time.perf_counter() - start, 3),
        stream=stream,
        dynamic=dynamic,
    )


def _as_captured(symbolic: Dynamic, clips: Sequence[_Clip], target: Target, progress: Progress) -> Rewritten:
    """The dynamic graph, which must compute every clip as the model does."""
    progress(Step(target.name, "checking the graph with symbolic sizes"))
    for clip in clips:
        if differs := difference(symbolic.graph, (clip.latents,), (clip.frames,)):
            raise ExportError(
                f"The graph with symbolic sizes that torch.export makes differs from the model by {differs} on "
                f"latents {tuple(clip.latents.shape)}: export once per shape with --shape."
            )
    return Rewritten(symbolic.graph, (), {"as_captured": "sizes are symbols, and rewrites need numbers"})


def _methods(clips: Sequence[_Clip], target: Target) -> list[str]:
    return [clip.method or target.method for clip in clips]


def versions() -> dict[str, str]:
    """Installed versions of what has a hand in a bundle."""
    found = {}
    for package in _RECORDED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
