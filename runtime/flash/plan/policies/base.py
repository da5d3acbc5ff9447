"""What a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np


class Policy(ABC):
    """One layer's table of `rows` rows for `neurons` neurons, by position in the pack.

    window_tokens is for policies that have a window; the others ignore it.
    """

    def __init__(self, rows: int, neurons: int, window_tokens: int) -> None:
        self.rows = rows
        self.window_tokens = window_tokens
        self.resident = np.zeros(neurons, bool)
        self.token = 0

    def step(self, needed: np.ndarray) -> tuple[np.ndarray, int, int]:
        """Serve a token that needs these positions: (positions to read, how many of them were kept, how many
        neurons lost their row)."""
        self.token += 1
        missing = needed[~self.resident[needed]]
        before = self.resident.copy()
        self.resident = self.keep(needed)
        kept = int(self.resident[missing].sum())
        evicted = int((before & ~self.resident).sum())
        return missing, kept, evicted

    @abstractmethod
    def keep(self, needed: np.ndarray) -> np.ndarray:
        """After this token: bool (neurons,), at most `rows` of them, among the resident and the needed ones."""

    def best(self, candidates: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Of a bool mask, the `rows` with the highest scores; the lowest positions of equal ones."""
        found = np.flatnonzero(candidates)
        chosen = found[np.argsort(-score[found], kind="stable")[: self.rows]]
        mask = np.zeros_like(candidates)
        mask[chosen] = True
        return mask
