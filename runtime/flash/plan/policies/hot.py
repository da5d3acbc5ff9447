"""A set that never changes."""

from __future__ import annotations

import numpy as np

from .base import Policy


class Hot(Policy):
    """The first `rows` of the pack's order, which has the hottest first, are pinned; nothing else is kept."""

    def __init__(self, rows: int, neurons: int, window_tokens: int) -> None:
        super().__init__(rows, neurons, window_tokens)
        self.resident[:rows] = True

    def keep(self, needed: np.ndarray) -> np.ndarray:
        return self.resident
