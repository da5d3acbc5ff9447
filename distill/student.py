"""A student as losses and scores see it: an encoder's latents in, frames in [-1, 1] out, for every family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from handheld.models.statistics import LatentStatistics

# The range of real frames, as the data and the teacher give them.
LOW, HIGH = -1.0, 1.0


def decoded(student: Any, latents: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Frames and feature maps of latents as the teacher's encoder emits them.

    Args:
        student: a Decoder, or anything with its `decode_with_features`.
        latents: (N, C, T', H', W'), not normalised.

    Returns:
        Frames (N, 3, T, H, W), nominally in [-1, 1], and the maps by their taps' names.
    """
    if getattr(student, "takes_normalised", False):
        latents = student.statistics.normalise(latents)
    frames, maps = student.decode_with_features(latents)
    low, high = getattr(student, "value_range", (LOW, HIGH))
    if (low, high) != (LOW, HIGH):
        frames = (frames - low) * ((HIGH - LOW) / (high - low)) + LOW
    return frames, maps


def adopt_statistics(student: Any, found: LatentStatistics | None) -> None:
    """Give a student that takes normalised latents the teacher's numbers; they are kept with its weights.

    Args:
        found: how a diffusion model normalises the teacher's latents; None where it takes them as they are.
    """
    if getattr(student, "takes_normalised", False):
        found = found or LatentStatistics()
        # Weights are kept with a mean and a standard deviation, so the scaling goes into the latter.
        student.stored_statistics = replace(found, std=tuple(s / found.scaling for s in found.std), scaling=1.0)
