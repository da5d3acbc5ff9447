"""How the frames of a layer stand against the frames that it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """What a layer does to a stream of frames.

    Attributes:
        rate: frames that it makes of each frame.
        delay: frames by which it is late: the frames that it looks ahead, and those that it drops.
        dropped: frames that it drops at the start of a clip. T frames become T * rate - dropped.
    """

    rate: int = 1
    delay: int = 0
    dropped: int = 0

    def then(self, later: Timing) -> Timing:
        """This layer and a later one together."""
        rate = later.rate
        return Timing(self.rate * rate, self.delay * rate + later.delay, self.dropped * rate + later.dropped)

    @property
    def causal(self) -> bool:
        """Whether no frame depends on a later one."""
        return self.delay == self.dropped
