"""Telling how a distillation goes: the protocol, a version that logs, and a progress bar."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from .metrics import Scores

log = logging.getLogger(__name__)


class Progress(Protocol):
    """What the engine calls while it works."""

    def on_stage(self, name: str, done: int, total: int) -> None:
        """Preparation `name` (a phrase such as `decoding videos`) has done `done` of `total` items."""

    def on_step(self, step: int, total: int, losses: Mapping[str, float], seconds: float) -> None:
        """Optimizer step `step` of `total` took `seconds`; `losses` has `loss` and its unweighted terms."""

    def on_eval(self, step: int, student: Scores, teacher: Scores) -> None:
        """Scores on the held-out clips after `step` steps."""

    def on_message(self, text: str) -> None:
        """Something that the user should read: a skipped video, a cache that is rebuilt."""


class LoggedProgress:
    """Messages and evaluations go to the log."""

    def on_stage(self, name: str, done: int, total: int) -> None:
        log.debug("%s: %d of %d", name, done, total)

    def on_step(self, step: int, total: int, losses: Mapping[str, float], seconds: float) -> None:
        log.debug("step %d of %d: %s", step, total, losses)

    def on_eval(self, step: int, student: Scores, teacher: Scores) -> None:
        log.info("step %d: student %.2f dB, teacher %.2f dB", step, student.psnr_db, teacher.psnr_db)

    def on_message(self, text: str) -> None:
        log.warning(text)


class RichProgress:
    """One bar with the time left, the losses and the last held-out PSNR. Use as a context manager.

    Args:
        console: a `rich.console.Console`; by default one on standard error.
    """

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        # A narrow terminal cuts the losses short, not the step and the time.
        self._bar = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=console or Console(stderr=True),
            expand=True,
        )
        self._task: Any = None
        self._name = ""
        self._scores = ""

    def __enter__(self) -> RichProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def on_stage(self, name: str, done: int, total: int) -> None:
        self._show(name, done, total, "")

    def on_step(self, step: int, total: int, losses: Mapping[str, float], seconds: float) -> None:
        shown = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        self._show("distilling", step, total, f"{self._scores}{shown}")

    def on_eval(self, step: int, student: Scores, teacher: Scores) -> None:
        self._scores = f"PSNR {student.psnr_db:.2f} (teacher {teacher.psnr_db:.2f}) dB · "
        self._bar.console.print(
            f"step {step}: held-out PSNR {student.psnr_db:.2f} dB, SSIM {student.ssim:.4f} "
            f"(teacher {teacher.psnr_db:.2f} dB, {teacher.ssim:.4f}); min-max convention "
            f"{student.psnr_minmax_db:.2f} dB, {student.ssim_minmax:.4f}",
            highlight=False,
            soft_wrap=True,
        )

    def on_message(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _show(self, name: str, done: int, total: int, note: str) -> None:
        if name != self._name:
            if self._task is not None:
                self._bar.remove_task(self._task)
            # A run that resumes starts its bar where it was, so that the estimate counts its own steps only.
            self._task = self._bar.add_task(name, total=total, completed=max(done - 1, 0), note=note)
            self._name = name
        self._bar.update(self._task, completed=done, total=total, note=note)
