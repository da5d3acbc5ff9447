"""How a pack's selector is made from calibration: one kind a file, one line here."""

from __future__ import annotations

from .base import SelectorKind
from .low_rank import SELECTOR as LOW_RANK
from .ternary import SELECTOR as TERNARY

SELECTORS: dict[str, SelectorKind] = {"ternary": TERNARY, "low-rank": LOW_RANK}

__all__ = ["SELECTORS", "SelectorKind"]
