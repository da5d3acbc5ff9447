"""`distill`: a recipe and a folder of videos in, a run folder out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from handheld.models import FAMILIES, Decoder, ModelError
from handheld.models.compat import check_compatible
from handheld.models.families.loading import causal_form, preset_config, read_config

from . import checkpoint, schema
from .data import (
    Batches,
    PoolBatches,
    Skipped,
    Split,
    TeacherBatches,
    build_pool,
    clip_rule,
    held_out_rule,
    listed,
    load,
)
from .errors import DistillError, RecipeError
from .features import FeatureLoss
from .held_out import HeldOut
from .losses import DistillLoss
from .metrics import Scores
from .perceptual import PERCEPTUAL, PerceptualLoss
from .progress import LoggedProgress, Progress
from .recipe import Recipe, StudentSection, parse_recipe
from .run_folder import RunFolder
from .student import adopt_statistics
from .trainer import Trainer

if TYPE_CHECKING:
    from handheld.models.teachers import Teacher


@dataclass(frozen=True)
class RunSummary:
    """How a distillation ended: scores on the held-out clips, and the videos that were passed over."""

    folder: Path
    steps: int
    student: Scores
    teacher: Scores
    skipped: tuple[Skipped, ...]


def distill(
    recipe: Recipe | str | Path | None,
    out: str | Path,
    *,
    videos: Sequence[str | Path] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    teacher: Teacher | None = None,
    student: Decoder | None = None,
    device: str | torch.device | None = None,
) -> RunSummary:
    """Distil a teacher's decoder into a student, and leave the run folder that docs/architecture.md describes.

    Args:
        recipe: a Recipe, a path, the name of a shipped recipe or YAML text; None takes that of the run to resume.
        out: the run folder.
        videos: files and folders instead of the recipe's `data.videos`.
        resume: go on with the run in `out` from its last checkpoint; on the CPU, with as many threads, the result
            equals that of an uninterrupted run bit for bit.
        progress: told how it goes; by default the log is.
        teacher: instead of the one that the recipe names; anything with the same attributes and methods will do.
        student: likewise; it is trained in place.
        device: where to compute; a GPU if there is one.

    Raises DistillError (RecipeError, DataError, DistillInterrupted) or ModelError; a saved checkpoint stays.
    """
    progress = progress or LoggedProgress()
    folder = RunFolder(Path(out))
    recipe = folder.begin(_resolved(recipe, videos), resume=resume)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        perceptual = PERCEPTUAL[recipe.loss.perceptual.name]() if recipe.loss.perceptual else None
        student = student if student is not None else build_student(recipe.student)
        teacher = teacher if teacher is not None else _load_teacher(recipe)
        latent_shape = _check_models(recipe, teacher, student)
        adopt_statistics(student, getattr(teacher, "statistics", None))
        student, teacher = student.to(device).train(), teacher.to(device)

        split = load(recipe.data, folder.cache / "videos", partial(progress.on_stage, "decoding videos"))
        if split.skipped:
            progress.on_message(f"{len(split.skipped)} files were skipped:{listed(split.skipped)}")
        folder.write_recipe(recipe)
        loss = _build_loss(recipe, teacher, student, latent_shape, perceptual, device)
        held_out = HeldOut(
            teacher,
            split,
            held_out_rule(recipe.data),
            recipe.data.held_out_clips,
            device,
            partial(progress.on_stage, "encoding held-out clips"),
        )

        def score(model: Decoder, step: int) -> None:
            scores = held_out.score(model)
            values = {"student": schema.plain(scores), "teacher": schema.plain(held_out.teacher_scores)}
            folder.record({"kind": "eval", "step": step, **values})
            progress.on_eval(step, scores, held_out.teacher_scores)

        trainer = Trainer(
            student,
            loss,
            _build_batches(recipe, teacher, split, folder, device, progress),
            recipe,
            data=split.fingerprint,
            folder=folder.checkpoint,
            record=folder.record,
            score=score,
            progress=progress,
        )
        if resume and checkpoint.exists(folder.checkpoint):
            trainer.restore()
            progress.on_message(f"Going on from step {trainer.step} of {recipe.optim.steps}.")
        folder.rewind(trainer.step)
        trainer.run()
        return _finish(folder, recipe, teacher, trainer.ema, held_out, progress)


def build_student(section: StudentSection) -> Decoder:
    """The student that a recipe describes, with random weights.

    Raises ModelError for an unknown one, and for a decoder of a family that is not trained.
    """
    if section.preset is not None:
        family, config = preset_config(FAMILIES, section.preset, causal=section.causal)
    else:
        family, config = read_config(FAMILIES, Path(str(section.config)))
        config = causal_form(family, config) if section.causal else config
    if not family.student:
        able = [name for name, other in FAMILIES.presets.items() if other.student]
        raise ModelError(
            f"{section.preset or section.config} is of the family {family.name}, which only exports. "
            f"Students: {', '.join(able)}."
        )
    return family.decoder(config)


def _load_teacher(recipe: Recipe) -> Teacher:
    from handheld.models.teachers import load_teacher

    return load_teacher(recipe.teacher.name, recipe.teacher.source)


def _resolved(recipe: Recipe | str | Path | None, videos: Sequence[str | Path] | None) -> Recipe | None:
    """The recipe with `videos` in it, checked; its paths absolute, as a run may be resumed from elsewhere."""
    if recipe is None:
        if videos is not None:
            raise DistillError("A run is resumed with its own videos: leave them out, or give the recipe too.")
        return None
    recipe = recipe if isinstance(recipe, Recipe) else parse_recipe(recipe)
    if faults := schema.faults(recipe):
        raise RecipeError("\n".join(faults))
    data, held_out, source, config = recipe.data, recipe.data.held_out, recipe.teacher.source, recipe.student.config
    given = data.videos if videos is None else videos
    return replace(
        recipe,
        teacher=replace(recipe.teacher, source=_absolute(source) if source and Path(source).exists() else source),
        student=replace(recipe.student, config=_absolute(config) if config else None),
        data=replace(
            data,
            videos=tuple(_absolute(path) for path in given),
            held_out=_absolute(held_out) if isinstance(held_out, str) else held_out,
        ),
    )


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().absolute())


def _check_models(recipe: Recipe, teacher: Teacher, student: Decoder) -> tuple[int, ...]:
    """Latent shape of one training clip. Raises ModelError or DistillError where models and clips do not fit."""
    check_compatible(teacher.spec, student.spec)
    data, shapes = recipe.data, []
    for name, size in (("crop", data.crop), ("held_out_crop", data.held_out_crop or data.crop)):
        try:
            shapes.append(teacher.spec.latent_shape(frames=data.frames, height=size, width=size))
        except ModelError as error:
            raise DistillError(
                f"data.frames and data.{name} do not fit teacher {recipe.teacher.name}. {error}"
            ) from None
    return shapes[0]


@torch.no_grad()
def _build_loss(
    recipe: Recipe,
    teacher: Teacher,
    student: Decoder,
    latent_shape: tuple[int, ...],
    perceptual: PerceptualLoss | None,
    device: torch.device,
) -> DistillLoss:
    """The loss, with the heads that the maps of one empty clip call for."""
    features = None
    if recipe.loss.taps:
        latents = torch.zeros(latent_shape, device=device)
        maps = [model.decode_with_features(latents)[1] for model in (student, teacher)]
        shapes = [{tap: tuple(tensor.shape) for tap, tensor in taps.items()} for taps in maps]
        features = FeatureLoss(recipe.loss.taps, *shapes, unit=recipe.loss.unit_features)
    return DistillLoss(recipe.loss, features, perceptual).to(device)


def _build_batches(
    recipe: Recipe, teacher: Teacher, split: Split, folder: RunFolder, device: torch.device, progress: Progress
) -> Batches:
    taps = sorted(set(recipe.loss.taps.values()))
    common: dict[str, Any] = {
        "taps": taps,
        "batch_size": recipe.optim.batch_size,
        "seed": recipe.seed,
        "device": device,
    }
    rule = clip_rule(recipe.data)
    if recipe.data.clips_per_video is None:
        return TeacherBatches(teacher, split.footage, split.train, rule, **common)
    pool = build_pool(
        teacher,
        split,
        rule,
        folder.cache / "pool",
        clips_per_video=recipe.data.clips_per_video,
        taps=taps if recipe.data.cache == "features" else (),
        seed=recipe.seed,
        device=device,
        on_clip=partial(progress.on_stage, "encoding clips"),
        on_message=progress.on_message,
    )
    return PoolBatches(teacher, pool, **common)


def _finish(
    folder: RunFolder,
    recipe: Recipe,
    teacher: Teacher,
    student: Decoder,
    held_out: HeldOut,
    progress: Progress,
) -> RunSummary:
    from .report import write_report

    scores = held_out.score(student)
    try:
        write_report(folder, recipe, teacher, student, held_out, scores)
    except OSError as error:
        raise DistillError(f"Cannot write the results in {folder.path}: {error.strerror or error}.") from error
    folder.drop_cache()
    return RunSummary(folder.path, recipe.optim.steps, scores, held_out.teacher_scores, held_out.split.skipped)
