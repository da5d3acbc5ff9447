"""Curves of a run: the loss of every step, and the held-out PSNR against the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handheld.files import replacing

from ..errors import DistillError

_COLOURS = {"loss": "#1f2933", "l1": "#2a78c8", "feature": "#c8762a", "perceptual": "#3f9b6c"}


def draw_loss(train: Sequence[dict[str, Any]], path: Path) -> None:
    """The loss and its unweighted terms over the steps: every step faint, their running mean on top."""
    figure, axes = _figure()
    steps = np.array([record["step"] for record in train])
    for name, colour in _COLOURS.items():
        values = np.array([record[name] for record in train if name in record])
        if len(values) != len(steps) or not len(steps):
            continue
        axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(steps, _smooth(values), color=colour, linewidth=1.8, label=name)
    axes.set(xlabel="step", ylabel="loss and its terms (unweighted)", yscale="log")
    axes.legend(frameon=False)
    _save(figure, path)


def draw_psnr(evals: Sequence[dict[str, Any]], teacher_psnr_db: float, path: Path) -> None:
    """The student's held-out PSNR over the steps, with the teacher's as a line."""
    figure, axes = _figure()
    steps = [record["step"] for record in evals]
    values = [record["student"]["psnr_db"] for record in evals]
    axes.axhline(teacher_psnr_db, color="#8a94a0", linestyle="--", label=f"teacher, {teacher_psnr_db:.2f} dB")
    last = f", {values[-1]:.2f} dB" if values else ""
    axes.plot(steps, values, color="#2a78c8", marker="o", markersize=4, linewidth=1.8, label=f"student{last}")
    axes.set(xlabel="step", ylabel="held-out PSNR (dB)")
    axes.legend(frameon=False, loc="lower right")
    _save(figure, path)


def _figure() -> tuple[Any, Any]:
    # The object interface: pyplot would pick a window system and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    with replacing(path, DistillError, make_folder=True) as partial:
        figure.savefig(partial, format="png")


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of at most a fiftieth of the run, shorter at both ends."""
    width = max(1, len(values) // 50)
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
