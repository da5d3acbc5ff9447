"""Least recently used."""

from __future__ import annotations

from .window import Window


class LeastRecent(Window):
    """A window as large as the rows hold."""

    def __init__(self, rows: int, neurons: int, window_tokens: int) -> None:
        super().__init__(rows, neurons, 1 << 62)
