"""Which neurons stay in memory: one policy a file, one line here."""

from __future__ import annotations

from .base import Policy
from .hot import Hot
from .lfu import LeastFrequent
from .lru import LeastRecent
from .window import Window

POLICIES: dict[str, type[Policy]] = {
    "window": Window,
    "lru": LeastRecent,
    "lfu": LeastFrequent,
    "hot": Hot,
}

__all__ = ["POLICIES", "Policy"]
