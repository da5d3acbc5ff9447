"""Held-out clips: the teacher's latents and scores, computed once, and the scores of a student at any time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from handheld.models import Decoder

from .data import ClipPlace, ClipRule, Split, from_pixels, pixels_of, spread, to_pixels
from .metrics import Scores, mean, score
from .student import decoded

if TYPE_CHECKING:
    from handheld.models.teachers import Teacher

# Held-out clips whose pixels go into the run folder.
SAMPLES = 8


class HeldOut:
    """Fixed held-out clips with the teacher's latents and scores.

    Args:
        teacher: encodes and decodes every clip once, here.
        split: where the clips come from.
        rule: their size.
        limit: at most so many clips.
        on_clip: called with (done, total).
    """

    def __init__(
        self,
        teacher: Teacher,
        split: Split,
        rule: ClipRule,
        limit: int,
        device: torch.device,
        on_clip: Callable[[int, int], None],
    ) -> None:
        self.split, self.rule, self.device = split, rule, device
        self.clips = spread(split.footage, split.held_out, rule, limit)
        count = min(SAMPLES, len(self.clips))
        self.samples = [(index * len(self.clips)) // count for index in range(count)]
        self.latents: list[Tensor] = []
        self._teacher_samples: list[Tensor] = []
        scores = []
        for index, clip in enumerate(self.clips):
            on_clip(index, len(self.clips))
            frames = self._frames(clip)
            self.latents.append(teacher.encode(frames))
            decoded = teacher.decode(self.latents[-1])
            scores.append(score(decoded, frames))
            if index in self.samples:
                self._teacher_samples.append(to_pixels(decoded).cpu())
        on_clip(len(self.clips), len(self.clips))
        self.teacher_scores = mean(scores)

    @torch.no_grad()
    def score(self, student: Decoder) -> Scores:
        """Scores of a student, averaged over the clips."""
        return mean(
            [
                score(decoded(student, z)[0], self._frames(clip))
                for z, clip in zip(self.latents, self.clips, strict=True)
            ]
        )

    @torch.no_grad()
    def render(self, student: Decoder) -> dict[str, Tensor]:
        """Up to `SAMPLES` clips: `latents` (N, C, T', H', W') and uint8 (N, 3, T, H, W) `frames`, `teacher_frames`
        and `student_frames`."""
        latents = torch.cat([self.latents[index] for index in self.samples])
        return {
            "latents": latents.float().cpu(),
            "frames": torch.stack([self._pixels(self.clips[index]) for index in self.samples]),
            "teacher_frames": torch.cat(self._teacher_samples),
            "student_frames": torch.cat([to_pixels(decoded(student, z[None])[0]).cpu() for z in latents]),
        }

    def _pixels(self, clip: ClipPlace) -> Tensor:
        return pixels_of(self.split.footage, clip, frames=self.rule.frames, crop=self.rule.crop)

    def _frames(self, clip: ClipPlace) -> Tensor:
        return from_pixels(self._pixels(clip).to(self.device))[None]
