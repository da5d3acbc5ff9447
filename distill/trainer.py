"""The training loop: resumable to the bit, since everything random in it is a function of the seed and the step."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from handheld.models import TurboVAEDecoder

from . import checkpoint
from .data import Batches, generator
from .errors import DistillError, DistillInterrupted
from .losses import DistillLoss
from .progress import Progress
from .recipe import OptimSection, Recipe

STEP = 4  # the purpose of these random numbers, see data/batches.py


class Trainer:
    """Trains a student on batches, and keeps the average of its weights.

    Args:
        student: `decode_with_features(latents) -> (frames, {tap: maps})`; trained in place.
        loss: its projection heads are trained too.
        batches: batch number -> Batch.
        recipe: the sections `optim` and `log`, and the seed.
        data: fingerprint of the videos; a checkpoint of other videos is refused.
        folder: where the checkpoint is.
        record: takes one metrics record (a step or an evaluation).
        evaluate: called with the averaged student and the step.
        progress: told of every step.
    """

    def __init__(
        self,
        student: TurboVAEDecoder,
        loss: DistillLoss,
        batches: Batches,
        recipe: Recipe,
        *,
        data: str,
        folder: Path,
        record: Callable[[dict[str, object]], None],
        evaluate: Callable[[TurboVAEDecoder, int], None],
        progress: Progress,
    ) -> None:
        self.student, self.loss, self.batches, self.recipe = student, loss, batches, recipe
        self.data, self.folder, self.record, self.evaluate, self.progress = data, folder, record, evaluate, progress
        self.ema = copy.deepcopy(student).eval().requires_grad_(False)
        self.parameters = [*student.parameters(), *loss.parameters()]
        optim = recipe.optim
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self.device = next(student.parameters()).device
        self.step = 0

    @property
    def _modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "ema": self.ema, "loss": self.loss}

    def restore(self) -> None:
        """Go on from the checkpoint. Raises DistillError if there is one of other videos or of another student."""
        facts = checkpoint.load(self.folder, self._modules, self.optimizer)
        here = checkpoint.Facts.of_here(facts.step, self.recipe.seed, self.data)
        if facts.data != here.data:
            raise DistillError(
                "The videos are not those that the run began with: files were added, removed or rewritten. Put "
                "them back, or start a new run."
            )
        for what, then, now in (("threads", facts.threads, here.threads), ("torch", facts.torch, here.torch)):
            if then != now:
                self.progress.on_message(
                    f"The run began with {what} {then} and goes on with {now}: it will not equal an "
                    "uninterrupted one to the last bit."
                )
        self.step = facts.step

    def run(self) -> None:
        """Train to the last step.

        Raises DistillInterrupted after SIGINT or SIGTERM (the step is finished and saved first; a second signal
        ends the process at once) and DistillError when the loss is no number (the last checkpoint stays).
        """
        steps, log = self.recipe.optim.steps, self.recipe.log
        with _stop_signal() as stopped:
            while self.step < steps:
                start = time.perf_counter()
                losses = self._train_step()
                seconds = time.perf_counter() - start
                self.step += 1
                self.record({"kind": "train", "step": self.step, **losses, "seconds": seconds})
                shown = {name: value for name, value in losses.items() if name not in ("lr", "grad_norm")}
                self.progress.on_step(self.step, steps, shown, seconds)
                if self.step % log.eval_every == 0 or self.step == steps:
                    self.evaluate(self.ema, self.step)
                if self.step % log.save_every == 0 or self.step == steps or stopped():
                    self._save()
                if stopped() and self.step < steps:
                    raise DistillInterrupted(
                        f"Stopped at step {self.step} of {steps}; the checkpoint is in {self.folder}. "
                        f"Continue with: handheld distill --out {self.folder.parent} --resume"
                    )

    def _save(self) -> None:
        facts = checkpoint.Facts.of_here(self.step, self.recipe.seed, self.data)
        checkpoint.save(self.folder, facts, self._modules, self.optimizer)

    def _train_step(self) -> dict[str, float]:
        """One optimizer step: `lr`, `loss`, its terms and `grad_norm`."""
        optim, rate = self.recipe.optim, learning_rate(self.recipe.optim, self.step)
        torch.manual_seed(int(generator(self.recipe.seed, STEP, self.step).integers(2**63)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, float] = {}
        for part in range(optim.accumulate):
            batch = self.batches(self.step * optim.accumulate + part)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=optim.precision == "bf16"):
                frames, features = self.student.decode_with_features(batch.latents)
                loss, terms = self.loss(frames, batch.frames, features, batch.features)
            for name, value in {"loss": loss.detach(), **terms}.items():
                totals[name] = totals.get(name, 0.0) + float(value) / optim.accumulate
            self._check_finite(totals)
            (loss / optim.accumulate).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, optim.clip_grad_norm or math.inf)
        totals["grad_norm"] = float(norm)
        self._check_finite(totals)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._average()
        return {"lr": rate, **totals}

    def _check_finite(self, values: Mapping[str, float]) -> None:
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            kept = f"The last checkpoint is in {self.folder}. " if checkpoint.exists(self.folder) else ""
            raise DistillError(
                f"Training failed at step {self.step + 1}: {', '.join(bad)}. {kept}Lower optim.lr, or set "
                "optim.clip_grad_norm or optim.warmup_steps."
            )

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.optim.ema_decay, (1 + self.step) / (10 + self.step))
        for mean, new in zip(self.ema.parameters(), self.student.parameters(), strict=True):
            mean.lerp_(new, 1 - decay)
        for buffer, now in zip(self.ema.buffers(), self.student.buffers(), strict=True):
            buffer.copy_(now)


def learning_rate(optim: OptimSection, step: int) -> float:
    """The rate of step `step` (the first is 0): linear warm-up, then constant or a half cosine down to 0."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * progress))


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT or SIGTERM came; the second one acts as it did before."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        came.set()
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield came.is_set
    finally:
        restore()
