"""Distillation recipes: what is distilled, on which clips, with which losses and for how long."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml

from . import schema
from .errors import RecipeError
from .schema import above, at_least, between

T = TypeVar("T")
Count = Annotated[int, at_least(1)]
Weight = Annotated[float, at_least(0)]
Faults = Iterator[tuple[str, str]]

RECIPE_FOLDER = Path(__file__).parent / "recipes"

# `kind:` of a recipe file -> the dataclass that it is parsed into, as `module:class`.
KINDS = {"distill": f"{__name__}:Recipe", "pretrain": f"{__package__}.pretrain:PretrainRecipe"}


@dataclass(frozen=True)
class TeacherSection:
    """The frozen teacher: its name in `handheld.models.teachers.TEACHERS` and where its weights are.

    Attributes:
        name: teacher's name.
        source: local folder or hub id; null takes the teacher's own default.
    """

    name: str
    source: str | None = None


@dataclass(frozen=True)
class StudentSection:
    """The student decoder: exactly one of `preset` and `config`.

    Attributes:
        preset: a preset of one of the families in `handheld.models.FAMILIES`.
        config: path of a JSON configuration, as released or as `save_pretrained` writes it.
        causal: no output frame depends on a later latent frame.
    """

    preset: str | None = None
    config: str | None = None
    causal: bool = False

    def check(self) -> Faults:
        if (self.preset is None) == (self.config is None):
            yield "preset", "give exactly one of preset and config"


@dataclass(frozen=True)
class DataSection:
    """Which clips are seen, and how they are cut out of the videos.

    Attributes:
        videos: video files and folders of them; the command line may give them instead.
        held_out: share of the videos that is never trained on (whole videos where the share is worth at least one,
            else the end of every video), or a folder of held-out videos.
        held_out_clips: at most so many clips are scored.
        held_out_crop: height and width of those clips; null means `crop`.
        frames: frames per clip.
        crop: height and width of a clip in pixels.
        short_side: frames are shrunk until their short side has so many pixels; null means `crop`.
        zoom: crops are taken at a random scale between `crop` and `short_side` and resized to `crop`.
        stride: lowest and highest step between the frames of a clip, in video frames.
        flip: half of the clips are mirrored left to right.
        max_frames: frames read of each video, from its start. They are kept as bytes on disk while the run lasts.
        cache: what the teacher computes once, for a fixed pool of clips: nothing, latents, or also its features.
        clips_per_video: size of that pool.
    """

    frames: Count
    crop: Annotated[int, at_least(11)]
    videos: tuple[str, ...] = ()
    held_out: Annotated[float, above(0), between(0, 0.5)] | str = 0.1
    held_out_clips: Count = 8
    held_out_crop: Annotated[int, at_least(11)] | None = None  # the window of SSIM
    short_side: Count | None = None
    zoom: bool = False
    stride: tuple[Count, Count] = (1, 1)
    flip: bool = True
    max_frames: Count = 400
    cache: Literal["none", "latents", "features"] = "none"
    clips_per_video: Count | None = None

    def check(self) -> Faults:
        low, high = self.stride
        short_side = self.short_side or self.crop
        if self.held_out_crop and short_side < self.held_out_crop:
            yield "held_out_crop", f"must be at most short_side ({short_side}), got {self.held_out_crop}"
        if short_side < self.crop:
            yield "short_side", f"must be at least crop ({self.crop}), got {short_side}"
        elif self.zoom and short_side == self.crop:
            yield "zoom", f"needs a short_side above crop ({self.crop}), got {short_side}"
        if low > high:
            yield "stride", f"must be lowest, highest; got {low}, {high}"
        elif self.max_frames < (self.frames - 1) * low + 1:
            yield "max_frames", f"must hold one clip of {(self.frames - 1) * low + 1} frames, got {self.max_frames}"
        if (self.cache == "none") != (self.clips_per_video is None):
            yield (
                "clips_per_video",
                f"goes with cache latents or features and only with them; cache is {self.cache}",
            )


@dataclass(frozen=True)
class PerceptualSection:
    """A perceptual term by its name in `handheld.distill.perceptual.PERCEPTUAL`."""

    name: Literal["ssim", "ms_ssim", "lpips"]
    weight: Annotated[float, above(0)] = 1.0


@dataclass(frozen=True)
class LossSection:
    """Weights of the terms of the loss.

    Attributes:
        l1: mean absolute difference to the real frames.
        feature: mean squared difference to the teacher's feature maps, summed over `taps`.
        taps: student's tap -> teacher's tap (`mid_block`, `up_block_0`, ...).
        unit_features: the teacher's maps are first scaled to a root mean square of 1 each. Maps of normalised
            residual networks may be hundreds large, which would drown the other terms. The release does not.
        perceptual: see PerceptualSection; null for none.
    """

    l1: Weight = 1.0
    feature: Weight = 0.0
    taps: dict[str, str] = field(default_factory=dict)
    unit_features: bool = False
    perceptual: PerceptualSection | None = None

    def check(self) -> Faults:
        if not self.l1 and not self.perceptual:
            yield "l1", "must be above 0 where there is no perceptual term: nothing else trains the last layers"
        if bool(self.feature) != bool(self.taps):
            yield "taps", f"must be given with feature above 0 and only then; feature is {self.feature:g}"
        if self.unit_features and not self.taps:
            yield "unit_features", "has nothing to scale without taps"


@dataclass(frozen=True)
class OptimSection:
    """AdamW and its schedule.

    Attributes:
        steps: optimizer steps.
        lr: highest learning rate.
        batch_size: clips per forward pass.
        accumulate: forward passes per optimizer step.
        warmup_steps: steps over which the learning rate rises linearly to `lr`.
        schedule: what follows: `constant`, or `cosine` down to 0 at the last step.
        ema_decay: decay of the averaged weights, which are what is scored and kept. It rises to this value as
            (1 + step) / (10 + step), so that short runs are not dominated by the initial weights.
        clip_grad_norm: gradients are scaled down to this norm; null for never.
        precision: arithmetic of the student's forward pass (weights and losses are fp32).
    """

    steps: Count
    lr: Annotated[float, above(0)]
    betas: tuple[Annotated[float, between(0, 0.9999)], Annotated[float, between(0, 0.9999)]] = (0.9, 0.95)
    weight_decay: Weight = 1e-4
    eps: Annotated[float, above(0)] = 1e-15
    batch_size: Count = 1
    accumulate: Count = 1
    warmup_steps: Annotated[int, at_least(0)] = 0
    schedule: Literal["constant", "cosine"] = "constant"
    ema_decay: Annotated[float, between(0, 0.99999)] = 0.999
    clip_grad_norm: Annotated[float, above(0)] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"

    def check(self) -> Faults:
        if self.warmup_steps > self.steps:
            yield "warmup_steps", f"must be at most steps ({self.steps}), got {self.warmup_steps}"


@dataclass(frozen=True)
class LogSection:
    """How often the student is scored and saved, in optimizer steps (both happen after the last step too)."""

    eval_every: Count = 500
    save_every: Count = 500


@dataclass(frozen=True)
class Recipe:
    """A distillation. Everything random in it is a function of `seed` and the step."""

    teacher: TeacherSection
    student: StudentSection
    data: DataSection
    loss: LossSection
    optim: OptimSection
    log: LogSection = LogSection()
    seed: Annotated[int, between(0, 2**32 - 1)] = 0
    kind: Literal["distill"] = "distill"

    def check(self) -> Faults:
        if self.data.cache == "features" and not self.loss.taps:
            yield "data.cache", "features has nothing to store without loss.taps"
        # The window of 11 pixels at the last of five scales.
        if self.loss.perceptual and self.loss.perceptual.name == "ms_ssim" and self.data.crop < 176:
            yield "data.crop", f"must be at least 176 for ms_ssim, got {self.data.crop}"


def parse_recipe(source: str | Path, cls: type[T] = Recipe) -> T:  # type: ignore[assignment]
    """Parse a recipe: a path, the name of a shipped recipe (`demo`), or YAML text (anything with a line break).

    Raises RecipeError with one line per fault: `recipe.yaml:12: data.crop: must be at least 8, got 4`.
    """
    text, name = _read(source)
    return schema.parse(text, cls, name=name)


def load_recipe(source: str | Path) -> Any:
    """Like `parse_recipe`, as the dataclass that the file's `kind:` names (default `distill`)."""
    text, name = _read(source)
    kind = "distill"
    node = schema.compose(text, name)
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == "kind":
            kind = str(value.value)
            if kind not in KINDS:
                line = key.start_mark.line + 1
                raise RecipeError(f"{name}:{line}: kind: must be one of {', '.join(KINDS)}, got {kind!r}")
    module, _, cls = KINDS[kind].partition(":")
    return schema.parse(text, getattr(importlib.import_module(module), cls), name=name)


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that the package ships."""
    return {path.stem: path for path in sorted(RECIPE_FOLDER.glob("*.yaml"))}


def _read(source: str | Path) -> tuple[str, str]:
    """Text and display name of a recipe given as path, shipped name or text."""
    if isinstance(source, str) and "\n" in source:
        return source, "recipe.yaml"
    shipped = shipped_recipes()
    path = Path(source)
    if not path.is_file() and str(source) in shipped:
        path = shipped[str(source)]
    try:
        return path.read_text(encoding="utf-8"), path.name
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        near = difflib.get_close_matches(str(source), shipped, n=1)
        hint = f"Did you mean the shipped recipe {near[0]}?" if near else f"Shipped: {', '.join(shipped)}."
        raise RecipeError(f"Cannot read the recipe {source}: {reason}. {hint}") from None
