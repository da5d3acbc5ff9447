"""`handheld.export`: from whatever names a decoder to a bundle, in one call."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from handheld.convert import Step, export_smallest, pipeline, resolve_targets
from handheld.convert.choice.costs import read_table
from handheld.convert.errors import ExportError
from handheld.convert.lowering import Progress
from handheld.convert.pixels import check_pixels
from handheld.convert.precision.auto import AUTO, DEFAULT_MIN_PSNR_DB
from handheld.convert.source import Source, declares_layers
from handheld.convert.streaming import PassCut, default_cuts
from handheld.convert.streaming.fit import choose_cuts
from handheld.convert.target import Target, choose_by, leave_out
from handheld.runtime.bundle import Bundle
from handheld.sources import open_source, with_latents_of

# Frames, height and width of a clip; None where nothing was said.
Size = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class ExportPlan:
    """An export whose arguments were checked: everything but the work.

    Attributes:
        examples: latents of each shape, and a word on where they come from; the first is the primary one.
        calibration: latents that precisions with 8-bit activations, and automatic ones, are measured on.
        calibration_from: a word on what they are.
        min_psnr_db: with an automatic precision, the lowest PSNR from the fp32 output.
        cuts: of a decoder that is exported for streaming.
        pixels: `float` or `rgba8`: what the artefacts give.
        dynamic: whether they take any size.
    """

    source: Source
    targets: tuple[Target, ...]
    precision: str | None
    examples: tuple[tuple[Tensor, str], ...]
    calibration: tuple[Tensor, ...]
    calibration_from: str
    min_psnr_db: float | None = None
    cuts: tuple[PassCut, ...] | None = None
    pixels: str = "float"
    dynamic: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether a precision depends on the calibration latents."""
        chosen = (t.precision(self.precision or t.default_precision) for t in self.targets)
        return self.min_psnr_db is not None or any(precision.calibrated for precision in chosen)

    def run(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        validate: bool = False,
        progress: Progress = lambda step: None,
    ) -> Bundle:
        """Do it: see `export`."""
        source = self.source
        (latents, _), *more = self.examples
        provenance = {
            **source.provenance,
            "golden_latents": "; ".join(dict.fromkeys(origin for _, origin in self.examples)),
            **({"calibration_latents": self.calibration_from} if self.calibrated else {}),
        }
        common: dict[str, Any] = {
            "targets": self.targets,
            "calibration": self.calibration,
            "name": source.name,
            "provenance": provenance,
            "overwrite": overwrite,
            "validate": validate,
            "value_range": source.value_range,
            "statistics": source.statistics,
            "progress": progress,
        }
        if self.min_psnr_db is not None:
            return export_smallest(source.model, latents, out, min_psnr_db=self.min_psnr_db, **common)
        others = [example for example, _ in more]
        return pipeline.export(
            *(source.model, latents, out),
            precision=self.precision,
            more=others,
            stream=self.cuts,
            pixels=self.pixels,
            dynamic=self.dynamic,
            **common,
        )


def plan_export(
    source: str | Path | nn.Module | Source | None,
    *,
    targets: Sequence[str | Target],
    precision: str | None = None,
    min_psnr_db: float | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    shapes: Sequence[str] = (),
    stream: bool = False,
    chunk: int | None = None,
    budget_bytes: int | None = None,
    calibration: str | Path | None = None,
    costs: str | Path | None = None,
    without: Collection[str] = (),
    pixels: str = "float",
    dynamic: bool = False,
    example: Tensor | None = None,
    **opening: Any,
) -> ExportPlan:
    """Check an export's arguments and open its source; the arguments are those of `export`.

    Raises ExportError naming all of what does not go together, before anything is opened.
    """
    automatic = precision == AUTO
    check_pixels(pixels)
    sizes = _sizes(shapes, (frames, height, width))
    faults = []
    if min_psnr_db is not None and not automatic:
        faults.append(f"a lowest PSNR ({min_psnr_db:g} dB) goes with precision auto; the precision is {precision}")
    if chunk is not None and not stream:
        faults.append(f"a chunk ({chunk}) goes with streaming")
    if budget_bytes is not None and not stream:
        faults.append(f"a budget ({budget_bytes / 1e6:g}MB) goes with streaming")
    if budget_bytes is not None and (len(targets) > 1 or chunk is not None):
        faults.append("a budget goes with one target, and chooses the chunks itself")
    if dynamic and automatic:
        faults.append("precision auto chooses for one shape: name a precision for dynamic sizes")
    if stream and pixels != "float":
        faults.append(pipeline.STREAMED_PIXELS.rstrip("."))
    if automatic and pixels != "float":
        faults.append("precision auto measures frames as floats: name a precision for 8-bit pixels")
    if automatic and stream:
        faults.append("precision auto does not go with streaming: name a precision")
    if automatic and len(sizes) > 1:
        faults.append("precision auto chooses for one shape: name a precision, or give one shape")
    if faults:
        raise ExportError(f"{'; '.join(faults)[0].upper()}{'; '.join(faults)[1:]}.")
    resolved = tuple(leave_out(_targets(targets, "fp32" if automatic else precision, costs), without))
    opened = open_source(source, example=example, **opening)
    if calibration is not None:
        opened = with_latents_of(opened, Path(calibration))
    if opened.layout == "NCTHW" and any(long is None for long, *_ in sizes) and shapes:
        raise ExportError(f"The shape {shapes[0]} has no number of frames: HEIGHTxWIDTHxFRAMES, such as 256x256x9.")
    examples = [opened.example(*size) for size in sizes]
    if calibration is not None:
        _check_large_enough(opened, examples, Path(calibration))
    latents, origin = examples[0]
    cuts = None
    if stream:
        pipeline.check_clips(latents)
        cuts = _cuts(opened, latents, resolved, precision, chunk, budget_bytes)
        if len(examples) == 1 and latents.shape[2] > 1:  # the other end of the lengths, to be verified too
            examples.append((latents[:, :, :1].contiguous(), f"the first frame of {origin}"))
    clips, what = opened.calibration(latents)
    more = [clip for other, _ in examples[1:] for clip in opened.calibration(other)[0]]
    floor = (DEFAULT_MIN_PSNR_DB if min_psnr_db is None else min_psnr_db) if automatic else None
    return ExportPlan(
        *(opened, resolved, None if automatic else precision, tuple(examples), (*clips, *more), what, floor, cuts),
        pixels=pixels,
        dynamic=dynamic,
    )


def export(
    source: str | Path | nn.Module | Source | None,
    out: str | Path | None = None,
    *,
    targets: Sequence[str | Target],
    overwrite: bool = False,
    validate: bool = False,
    progress: Progress = lambda step: None,
    **options: Any,
) -> Bundle:
    """Lower a decoder to Core ML, ExecuTorch, ONNX and Core AI, and write a bundle.

        handheld.export("ltx", "bundle", targets=["onnx", "android"])
        handheld.export(module, "bundle", example=latents, targets=["ios"])

    Args:
        source: as `handheld.open_source` takes it: a preset, run, checkpoint, folder or hub id of an autoencoder,
            `package.module:factory`, or a module, latents in and pictures out.
        out: the bundle's folder; None is `NAME-bundle` in the current one.
        targets: names in `handheld.TARGETS`.
        overwrite: replace an existing bundle.
        validate: check each place of each rewrite as it is applied, on the example.
        progress: called before each step with a `Step`.
        precision: of every artefact; None is each target's own default; "auto" chooses.
        min_psnr_db: with precision auto, the lowest PSNR from the fp32 output; 40 by default.
        frames, height, width: of the clip, in pixels; by default those of the run's held-out clips, else 9 frames
            of 256x256.
        shapes: instead of these, several as "256x256x9" (height, width, frames); of images "256x256".
        stream: export for streaming: clips of any number of frames, in the memory of a few.
        chunk: with `stream`, frames of a call, at least.
        budget_bytes: with `stream` and one target, memory of the process that decodes.
        calibration: a file of real latents, for the ranges of 8-bit activations and as golden input.
        without: names of rewrites to leave out.
        pixels: "float", frames in the decoder's value range; "rgba8", uint8 (1, T, H, W, 4) with alpha 255, made in
            the artefact.
        dynamic: ONNX only: one graph for any number of frames, height and width, as captured: rewrites need fixed
            sizes, and none is applied.
        costs: a cost table from `handheld tune`, in place of the one of the target's runtime.
        example: latents of one clip (1, C, T, H, W) or image (1, C, H, W), for a module that has no `spec`.
        config, subfolder, causal, seed, teacher: see `handheld.open_source`.

    Returns:
        The bundle, in its place; each artefact that this machine can run has run once.

    Raises:
        ExportError: arguments that do not go together, and what `handheld.convert.pipeline.export` raises.
        ModelError, DistillError: a source that cannot be opened.
        RuntimeFailure: an artefact that does not run, or a folder that cannot be written.
    """
    plan = plan_export(source, targets=targets, **options)
    return plan.run(
        out or default_folder(plan.source.name), overwrite=overwrite, validate=validate, progress=progress
    )


def default_folder(name: str) -> Path:
    """Where a bundle goes by default, from its source's name."""
    return Path(f"{Path(name).name or 'decoder'}-bundle")


def _targets(given: Sequence[str | Target], precision: str | None, costs: str | Path | None) -> tuple[Target, ...]:
    if isinstance(given, str):
        raise ExportError(f"targets is the text {given!r}; a list of names is needed, such as [{given!r}].")
    names = [target for target in given if isinstance(target, str)]
    own = [target for target in given if isinstance(target, Target)]
    resolved = [*(resolve_targets(names, precision) if names or not own else []), *own]
    return tuple(choose_by(resolved, read_table(Path(costs))) if costs is not None else resolved)


def _sizes(shapes: Sequence[str], size: Size) -> list[Size]:
    """(frames, height, width) of each shape."""
    if not shapes:
        if wrong := [f"{n}" for n in size if n is not None and n < 1]:
            raise ExportError(f"Sizes must be 1 or more; {', '.join(wrong)} was given.")
        return [size]
    if size != (None, None, None):
        raise ExportError("Shapes take the place of height, width and frames: give them alone.")
    found: list[Size] = []
    for text in shapes:
        match = re.fullmatch(r"0*([1-9]\d*)x0*([1-9]\d*)(?:x0*([1-9]\d*))?", text)
        if match is None:
            raise ExportError(
                f"The shape {text} is none: HEIGHTxWIDTHxFRAMES is wanted, such as 256x256x9; of an image 256x256."
            )
        tall, wide, long = (int(group) if group else None for group in match.groups())
        if (long, tall, wide) in found:
            raise ExportError(f"The shape {text} is given twice.")
        found.append((long, tall, wide))
    return found


def _check_large_enough(source: Source, examples: Sequence[tuple[Tensor, str]], path: Path) -> None:
    held = source.latents
    assert held is not None
    for latents, origin in examples:
        if source.latents_name not in origin:
            has, wanted = ("x".join(map(str, x.shape[2:])) for x in (held, latents))
            raise ExportError(
                f"{path} holds latents of {has}, smaller than the export's {wanted}: encode a larger clip, "
                "or export for the size of these."
            )


def _cuts(
    source: Source,
    latents: Tensor,
    targets: Sequence[Target],
    precision: str | None,
    chunk: int | None,
    budget_bytes: int | None,
) -> tuple[PassCut, ...]:
    model: Any = source.model
    if not declares_layers(model):
        raise ExportError(
            f"{source.name} is not exported for streaming: a {type(model).__name__} does not declare its layers. "
            "Export whole clips, or make it a handheld.Decoder that defines `layers()`."
        )
    if budget_bytes is None:
        return default_cuts(model, latents.shape[2], chunk or 1)
    (wanted,) = targets
    found = choose_cuts(model, latents.shape, wanted, precision or wanted.default_precision, budget_bytes)
    if found is None:
        raise ExportError(
            f"Nothing fits {budget_bytes / 1e6:g}MB on {wanted.name}: `handheld fit` says what it would take."
        )
    return found


__all__ = ["ExportPlan", "Step", "default_folder", "export", "plan_export"]
