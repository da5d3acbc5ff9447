"""Distilling a student: the loss of `losses.py` in the loop of `loop.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from handheld.models import Decoder

from .data import Batches
from .loop import Loop, LoopSettings
from .losses import DistillLoss
from .progress import Progress
from .recipe import OptimSection, Recipe
from .student import decoded


class Trainer(Loop[Decoder]):
    """Trains a student on batches, and keeps the average of its weights.

    Args:
        student: `decode_with_features(latents) -> (frames, {tap: maps})`; trained in place.
        loss: its projection heads are trained too.
        batches: batch number -> Batch.
        recipe: the sections `optim` and `log`, and the seed.
        data: fingerprint of the videos; a checkpoint of other videos is refused.
        folder: where the checkpoint is.
        record: takes one metrics record (a step or an evaluation).
        score: called with the averaged student and the step.
        progress: told of every step.
    """

    def __init__(
        self,
        student: Decoder,
        loss: DistillLoss,
        batches: Batches,
        recipe: Recipe,
        *,
        data: str,
        folder: Path,
        record: Callable[[dict[str, object]], None],
        score: Callable[[Decoder, int], None],
        progress: Progress,
    ) -> None:
        optim, log = recipe.optim, recipe.log
        optimizer = torch.optim.AdamW(
            [*student.parameters(), *loss.parameters()],
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        settings = LoopSettings(
            steps=optim.steps,
            rate=lambda step: learning_rate(optim, step),
            ema_decay=optim.ema_decay,
            clip_grad_norm=optim.clip_grad_norm,
            accumulate=optim.accumulate,
            eval_every=log.eval_every,
            save_every=log.save_every,
            seed=recipe.seed,
            data=data,
            folder=folder,
            command=f"handheld distill --out {folder.parent} --resume",
        )
        super().__init__("student", student, {"loss": loss}, optimizer, settings, record=record, progress=progress)
        self._loss, self._batches, self._score = loss, batches, score
        self._device = next(student.parameters()).device
        self._bf16 = optim.precision == "bf16"

    def loss(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self._batches(part)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            frames, features = decoded(self.model, batch.latents)
            return self._loss(frames, batch.frames, features, batch.features)

    def score(self, model: Decoder, step: int) -> None:
        self._score(model, step)


def learning_rate(optim: OptimSection, step: int) -> float:
    """The rate of step `step` (the first is 0): linear warm-up, then constant or a half cosine down to 0."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * progress))
