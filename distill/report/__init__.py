"""What a finished run leaves: weights, held-out clips, plots, a picture, and run.json, which comes last."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING

from handheld.files import save_tensors, write_text
from handheld.models import Decoder

from ..errors import DistillError
from ..held_out import HeldOut
from ..metrics import Scores
from ..recipe import Recipe
from ..run_folder import FORMAT_VERSION, RunFolder
from .pictures import draw_frames
from .plots import draw_loss, draw_psnr

if TYPE_CHECKING:
    from handheld.models.teachers import Teacher


def write_report(
    folder: RunFolder, recipe: Recipe, teacher: Teacher, student: Decoder, held_out: HeldOut, scores: Scores
) -> None:
    """Write everything that the run folder of a finished run holds beside its recipe, metrics and checkpoint."""
    path = folder.path
    # run.json is written last: without it, `read_run` takes the run for unfinished.
    folder.run_json.unlink(missing_ok=True)
    student.save_pretrained(path / "student")
    tensors = held_out.render(student)
    save_tensors(path / "held_out.safetensors", tensors, DistillError)
    records = list(folder.records())
    train = [record for record in records if record.get("kind") == "train"]
    evals = [record for record in records if record.get("kind") == "eval"]
    draw_loss(train, path / "plots" / "loss.png")
    draw_psnr(evals, held_out.teacher_scores.psnr_db, path / "plots" / "psnr.png")
    names = [held_out.split.footage.paths[held_out.clips[index].video].name for index in held_out.samples]
    draw_frames(tensors, names, path / "frames.png")
    facts = {
        "format_version": FORMAT_VERSION,
        "teacher": {
            "name": recipe.teacher.name,
            "source": recipe.teacher.source,
            "weights_sha256": teacher.weights_sha256,
        },
        "student": {**asdict(recipe.student), "parameters": sum(p.numel() for p in student.parameters())},
        "seed": recipe.seed,
        "steps": recipe.optim.steps,
        "train_seconds": sum(record["seconds"] for record in train),
        "data": {
            "videos": [video.name for video in held_out.split.footage.paths],
            "skipped": [{"file": item.path.name, "reason": item.reason} for item in held_out.split.skipped],
            "frames": recipe.data.frames,
            "crop": recipe.data.crop,
            "held_out_crop": held_out.rule.crop,
            "held_out_clips": len(held_out.clips),
        },
        "metrics": {"student": asdict(scores), "teacher": asdict(held_out.teacher_scores)},
        "versions": {"python": platform.python_version(), **_versions("handheld", "torch", "diffusers", "av")},
    }
    write_text(folder.run_json, json.dumps(facts, indent=2) + "\n", DistillError)


def _versions(*packages: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in packages}
