"""The one training loop. It resumes to the bit: all that is random in it is a function of the seed and the step.

What is trained is a subclass with a loss: `trainer.Trainer` distils students, `pretrain.Pretrainer` trains the
embedded teacher.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from . import checkpoint
from .data import generator
from .errors import DistillError, DistillInterrupted
from .progress import Progress

STEP = 4  # the purpose of these random numbers, see data/batches.py

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class LoopSettings:
    """The settings of a loop that do not depend on what it trains.

    Attributes:
        steps: optimizer steps in all.
        rate: the learning rate of a step; the first is 0.
        ema_decay: decay of the averaged weights. It rises to this value over the first steps.
        clip_grad_norm: gradients are scaled down to this norm; None: never.
        accumulate: parts of a step. Their gradients are averaged.
        eval_every, save_every: steps between two scorings, and between two checkpoints. The last step has both.
        seed: of all random numbers.
        data: fingerprint of the videos; a checkpoint of other videos is refused.
        folder: where the checkpoint is.
        command: what a user types to go on after an interruption.
    """

    steps: int
    rate: Callable[[int], float]
    ema_decay: float
    clip_grad_norm: float | None
    accumulate: int
    eval_every: int
    save_every: int
    seed: int
    data: str
    folder: Path
    command: str


class Loop(ABC, Generic[Model]):
    """Trains a model, and keeps the average of its weights.

    Args:
        name, model: what is trained, in place; its tensors are `name.*` in the checkpoint.
        others: further modules that are trained, by their names in the checkpoint.
        optimizer: of all their parameters.
        record: takes one metrics record of a step.
        progress: told of every step.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        others: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        settings: LoopSettings,
        *,
        record: Callable[[dict[str, object]], None],
        progress: Progress,
    ) -> None:
        self.model, self.optimizer, self.settings = model, optimizer, settings
        self.record, self.progress = record, progress
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.modules: dict[str, nn.Module] = {name: model, "ema": self.ema, **others}
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.step = 0

    @abstractmethod
    def loss(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of part `part` and its terms by name. Parts are counted through all steps."""

    @abstractmethod
    def score(self, model: Model, step: int) -> None:
        """Score the averaged model on held-out clips after so many steps, and record the scores."""

    def restore(self) -> None:
        """Go on from the checkpoint. Raises DistillError if there is one of other videos or of another model."""
        facts = checkpoint.load(self.settings.folder, self.modules, self.optimizer)
        here = checkpoint.Facts.of_here(facts.step, self.settings.seed, self.settings.data)
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
        settings = self.settings
        with _stop_signal() as stopped:
            while self.step < settings.steps:
                start = time.perf_counter()
                losses = self._train_step()
                seconds = time.perf_counter() - start
                self.step += 1
                last = self.step == settings.steps
                self.record({"kind": "train", "step": self.step, **losses, "seconds": seconds})
                shown = {name: value for name, value in losses.items() if name not in ("lr", "grad_norm")}
                self.progress.on_step(self.step, settings.steps, shown, seconds)
                if self.step % settings.eval_every == 0 or last:
                    self.score(self.ema, self.step)
                if self.step % settings.save_every == 0 or last or stopped():
                    self._save()
                if stopped() and not last:
                    raise DistillInterrupted(
                        f"Stopped at step {self.step} of {settings.steps}; the checkpoint is in {settings.folder}. "
                        f"Continue with: {settings.command}"
                    )

    def _save(self) -> None:
        facts = checkpoint.Facts.of_here(self.step, self.settings.seed, self.settings.data)
        checkpoint.save(self.settings.folder, facts, self.modules, self.optimizer)

    def _train_step(self) -> dict[str, float]:
        """One optimizer step: `lr`, `loss`, its terms and `grad_norm`."""
        settings, rate = self.settings, self.settings.rate(self.step)
        torch.manual_seed(int(generator(settings.seed, STEP, self.step).integers(2**63)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, float] = {}
        for part in range(settings.accumulate):
            loss, terms = self.loss(self.step * settings.accumulate + part)
            for name, value in {"loss": loss.detach(), **terms}.items():
                totals[name] = totals.get(name, 0.0) + float(value) / settings.accumulate
            self._check_finite(totals)
            (loss / settings.accumulate).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip_grad_norm or math.inf)
        totals["grad_norm"] = float(norm)
        self._check_finite(totals)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._average()
        return {"lr": rate, **totals}

    def _check_finite(self, values: Mapping[str, float]) -> None:
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            folder = self.settings.folder
            kept = f"The last checkpoint is in {folder}. " if checkpoint.exists(folder) else ""
            raise DistillError(
                f"Training failed at step {self.step + 1}: {', '.join(bad)}. {kept}Lower optim.lr, or set "
                "optim.clip_grad_norm or optim.warmup_steps."
            )

    @torch.no_grad()
    def _average(self) -> None:
        # The decay rises to its value, so that the first random weights are soon forgotten.
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        for mean, new in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(new, 1 - decay)
        for buffer, now in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            buffer.copy_(now)


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
