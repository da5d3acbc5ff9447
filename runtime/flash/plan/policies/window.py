"""The paper's sliding window, as the engine has it."""

from __future__ import annotations

import numpy as np

from .base import Policy


class Window(Policy):
    """A neuron stays until no token of the last `window_tokens` needed it; where rows are short, the one needed
    longest ago goes first."""

    def __init__(self, rows: int, neurons: int, window_tokens: int) -> None:
        super().__init__(rows, neurons, window_tokens)
        self._last = np.full(neurons, -1, np.int64)

    def keep(self, needed: np.ndarray) -> np.ndarray:
        self._last[needed] = self.token
        candidates = self.resident | (self._last == self.token)
        return self.best(candidates & (self._last > self.token - self.window_tokens), self._last)
