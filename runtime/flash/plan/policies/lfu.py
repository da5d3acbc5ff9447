"""Least frequently used."""

from __future__ import annotations

import numpy as np

from .base import Policy

_HALF_LIFE_TOKENS = 64


class LeastFrequent(Policy):
    """The neurons needed most often stay; a use counts half after 64 tokens, so that a change of subject shows."""

    def __init__(self, rows: int, neurons: int, window_tokens: int) -> None:
        super().__init__(rows, neurons, window_tokens)
        self._uses = np.zeros(neurons)

    def keep(self, needed: np.ndarray) -> np.ndarray:
        self._uses *= 0.5 ** (1 / _HALF_LIFE_TOKENS)
        self._uses[needed] += 1
        candidates = self.resident.copy()
        candidates[needed] = True
        return self.best(candidates, self._uses)
