"""What a layer asks of whoever runs it: frames of the past, borders, and where it stands in the clip.

A layer computes the same in every flow. Flows differ in which frames of a clip they have: `WholeClip` has all of
them; the call of an exported segment has the next few, and states for the others (`convert/streaming/call.py`).
Tensors are NCTHW.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ModelError

Function = Callable[[Tensor], Tensor]


class Border(Enum):
    """What stands before the first frame of a clip and after the last one."""

    REPLICATE = "replicate"
    ZEROS = "zeros"


@dataclass(frozen=True)
class Taps:
    """The frames that a layer reads for each frame that it makes.

    Attributes:
        count: how many.
        ahead: how many of them come after the frame that is made.
        border: what stands in the places of frames outside the clip.
    """

    count: int
    ahead: int = 0
    border: Border = Border.REPLICATE

    def __post_init__(self) -> None:
        if not 0 <= self.ahead < self.count:
            raise ModelError(f"{self.count} taps, {self.ahead} of them ahead: 1 or more are needed, one not ahead.")

    @classmethod
    def centred(cls, count: int, *, causal: bool, border: Border = Border.REPLICATE) -> Taps:
        """Half of the other taps on each side, the larger half ahead; or none ahead, if causal."""
        return cls(count, 0 if causal else count // 2, border)

    @property
    def before(self) -> int:
        """Taps that come before the frame that is made."""
        return self.count - 1 - self.ahead


def bordered(x: Tensor, border: Border, before: int, after: int) -> Tensor:
    """A clip with so many border frames before and after it."""
    if not before and not after:
        return x
    if border is Border.ZEROS:
        return F.pad(x, (0, 0, 0, 0, before, after))
    first, last = x[:, :, :1], x[:, :, -1:]
    return torch.cat([first] * before + [x] + [last] * after, dim=2)


class Flow:
    """One run of layers. Layers call these methods in the order in which they compute."""

    whole = False

    def extend(self, x: Tensor, taps: Taps) -> Tensor:
        """The frames that are kept for a layer with these taps, then x."""
        raise NotImplementedError

    def border(self, extended: Tensor, taps: Taps) -> Tensor:
        """What was extended before, with border frames in the places of frames outside the clip."""
        raise NotImplementedError

    def reach(self, rows: int) -> None:
        """A layer reads so many rows above and below each row that it makes."""

    def grow(self, y: Tensor, frames: int, dropped: int, scale: int) -> Tensor:
        """What a layer made: `frames` frames, `scale` rows for each. The clip loses its first `dropped` frames."""
        raise NotImplementedError

    def delayed(self, extended: Tensor, taps: Taps, delay: int) -> Tensor:
        """Of what was extended: the frames that came `delay` frames before those of the x that was given."""
        raise NotImplementedError

    def delay(self, x: Tensor, frames: int) -> Tensor:
        """The frames that came so many frames before those of x."""
        raise NotImplementedError

    def both(self, branch: Callable[[], Tensor], shortcut: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Run two sequences of layers on the same input, one after the other."""
        return branch(), shortcut()

    def first_alone(
        self, x: Tensor, taps: Taps, prepare: Function, convolve: Function, spread: Function, frames: int
    ) -> Tensor:
        """The clip's first frame as it is; of the frames after it, a clip of their own, `frames` frames for each.

        Args:
            prepare: of each place and time by itself.
            convolve: of prepared frames with their borders.
            spread: moves channels of a frame into `frames` frames.
        """
        raise NotImplementedError


class WholeClip(Flow):
    """A run on all frames of a clip."""

    whole = True

    def extend(self, x: Tensor, taps: Taps) -> Tensor:
        return x

    def border(self, extended: Tensor, taps: Taps) -> Tensor:
        return bordered(extended, taps.border, taps.before, taps.ahead)

    def grow(self, y: Tensor, frames: int, dropped: int, scale: int) -> Tensor:
        return y[:, :, dropped:] if dropped else y

    def delayed(self, extended: Tensor, taps: Taps, delay: int) -> Tensor:
        return extended

    def delay(self, x: Tensor, frames: int) -> Tensor:
        return x

    def first_alone(
        self, x: Tensor, taps: Taps, prepare: Function, convolve: Function, spread: Function, frames: int
    ) -> Tensor:
        if x.shape[2] == 1:
            return x
        y = convolve(self.border(prepare(x[:, :, 1:]), taps))
        return torch.cat([x[:, :, :1], spread(y)], dim=2)


WHOLE_CLIP = WholeClip()
