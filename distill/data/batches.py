"""Batches of clips with the teacher's latents and features. A batch depends on the seed and its index only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .clips import ClipRule, Span, draw, from_pixels, generator, pixels_of
from .pool import Pool, teacher_features
from .videos import Footage

if TYPE_CHECKING:
    from handheld.models.teachers import Teacher

# Purposes of random numbers, so that no two of them share a stream.
LIVE, SHUFFLE = 1, 2


@dataclass(frozen=True)
class Batch:
    """Clips and their targets.

    Attributes:
        frames: (N, 3, T, H, W) in [-1, 1].
        latents: (N, C, T', H', W') of the teacher.
        features: teacher's tap -> feature map (N, C, T'', H'', W'').
    """

    frames: Tensor
    latents: Tensor
    features: Mapping[str, Tensor]


class Batches(Protocol):
    """Batch number `index`, the same whenever and wherever it is asked for."""

    def __call__(self, index: int) -> Batch: ...


class TeacherBatches:
    """New random clips in every batch; the teacher encodes them as they come."""

    def __init__(
        self,
        teacher: Teacher,
        footage: Footage,
        spans: Sequence[Span],
        rule: ClipRule,
        *,
        taps: Sequence[str],
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.teacher, self.footage, self.spans, self.rule = teacher, footage, spans, rule
        self.taps, self.batch_size, self.seed, self.device = taps, batch_size, seed, device

    def __call__(self, index: int) -> Batch:
        pixels = []
        for number in range(index * self.batch_size, (index + 1) * self.batch_size):
            clip = draw(generator(self.seed, LIVE, number), self.footage, self.spans, self.rule)
            pixels.append(pixels_of(self.footage, clip, frames=self.rule.frames, crop=self.rule.crop))
        frames = from_pixels(torch.stack(pixels).to(self.device))
        latents = self.teacher.encode(frames)
        return Batch(frames, latents, teacher_features(self.teacher, latents, self.taps))


class PoolBatches:
    """Clips of a fixed pool. When all were used, they come again in a new order."""

    def __init__(
        self,
        teacher: Teacher,
        pool: Pool,
        *,
        taps: Sequence[str],
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.teacher, self.pool, self.taps = teacher, pool, taps
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self._epoch, self._order = -1, torch.empty(0)

    def __call__(self, index: int) -> Batch:
        entries = [
            self.pool[self._entry(number)]
            for number in range(index * self.batch_size, (index + 1) * self.batch_size)
        ]
        joined = {name: torch.stack([entry[name] for entry in entries]).to(self.device) for name in entries[0]}
        frames, latents = from_pixels(joined.pop("frames")), joined.pop("latents")
        features = joined or teacher_features(self.teacher, latents, self.taps)
        return Batch(frames, latents, features)

    def _entry(self, number: int) -> int:
        epoch, place = divmod(number, len(self.pool))
        if epoch != self._epoch:
            order = generator(self.seed, SHUFFLE, epoch).permutation(len(self.pool))
            self._epoch, self._order = epoch, torch.from_numpy(order)
        return int(self._order[place])
