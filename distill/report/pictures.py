"""Held-out frames side by side: original, teacher, student, and where the student differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from handheld.files import replacing

from ..errors import DistillError

ROWS = 4
GAIN = 4  # of the difference pictures


def draw_frames(tensors: Mapping[str, Tensor], names: Sequence[str], path: Path) -> None:
    """One row per clip (the first `ROWS`, from different videos where there are), its middle frame.

    Args:
        tensors: uint8 (N, 3, T, H, W) `frames`, `teacher_frames` and `student_frames`.
        names: of the videos of the clips.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _varied(names)[:ROWS]
    figure = Figure(figsize=(4 * 2.3, len(rows) * 2.55 + 0.1), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), 4, squeeze=False)
    for axes, index in zip(grid, rows, strict=True):
        real, teacher, student = (
            tensors[name][index, :, tensors[name].shape[2] // 2].permute(1, 2, 0).numpy()
            for name in ("frames", "teacher_frames", "student_frames")
        )
        difference = np.abs(student.astype(int) - real.astype(int))
        pictures = {
            f"original · {names[index][:24]}": real,
            f"teacher · {_psnr_db(teacher, real):.1f} dB": teacher,
            f"student · {_psnr_db(student, real):.1f} dB": student,
            f"|student − original| × {GAIN}": (difference * GAIN).clip(0, 255).astype(np.uint8),
        }
        for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=8, color="#1f2933")
            axis.set_axis_off()
    with replacing(path, DistillError, make_folder=True) as partial:
        figure.savefig(partial, format="png")


def _varied(names: Sequence[str]) -> list[int]:
    """Indices of `names`, such that each name comes once before any comes twice."""
    rank = [names[:index].count(name) for index, name in enumerate(names)]
    return sorted(range(len(names)), key=lambda index: rank[index])


def _psnr_db(picture: np.ndarray, real: np.ndarray) -> float:
    mse = float(np.square(picture.astype(float) - real.astype(float)).mean())
    return min(100.0, 10 * math.log10(255**2 / mse)) if mse else 100.0
