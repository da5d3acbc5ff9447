"""Layers in a segment's call, and the survey that finds shapes and delays before there is one.

A call takes the next frames of a clip. What a layer keeps between calls is a state; at a clip's borders a select,
which the runner computes from whole numbers, says which frame stands for which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from handheld.models.layers import Border, Flow, Function, Taps
from handheld.runtime.stream_plan import TimeConv, Timeline

from ..errors import ExportError


def as_clip(frames: Tensor) -> Tensor:
    """(T, C, H, W) to NCTHW."""
    return frames.reshape(1, *frames.shape).transpose(1, 2)


def as_frames(clip: Tensor) -> Tensor:
    """NCTHW with N = 1 to (T, C, H, W)."""
    return clip.transpose(1, 2).reshape(clip.shape[2], clip.shape[1], *clip.shape[3:])


class Call(Flow):
    """One call: the selects and states that its layers use up, in order, and the states that they leave.

    Args:
        selects: (1, m, m).
        states: (taps - 1, C, H, W).
        identities: the identity matrix of each size of `Survey.identities`.
    """

    def __init__(
        self, selects: Sequence[Tensor], states: Sequence[Tensor], identities: Mapping[int, Tensor]
    ) -> None:
        self._selects = iter(selects)
        self._states = iter(states)
        self._identities = identities
        self.kept: list[Tensor] = []

    def extend(self, x: Tensor, taps: Taps) -> Tensor:
        extended = torch.cat([as_clip(next(self._states)), x], dim=2)
        self.kept.append(as_frames(extended[:, :, x.shape[2] :]))
        return extended

    def border(self, extended: Tensor, taps: Taps) -> Tensor:
        # A select repeats border frames. A frame of the clip stands for itself: zeros are left where one does not.
        select = next(self._selects) if taps.border is Border.REPLICATE else self._inside(extended.shape[2])
        return _choose(select, extended)

    def grow(self, y: Tensor, frames: int, dropped: int, scale: int) -> Tensor:
        return y  # dropped frames are left to the timeline

    def delayed(self, extended: Tensor, taps: Taps, delay: int) -> Tensor:
        kept = taps.count - 1
        return extended[:, :, kept - delay : extended.shape[2] - delay]

    def delay(self, x: Tensor, frames: int) -> Tensor:
        if not frames:
            return x
        taps = Taps(frames + 1, frames, Border.ZEROS)
        # Through the select, which would be an input without a reader otherwise.
        return self.border(self.extend(x, taps), taps)[:, :, : x.shape[2]]

    def first_alone(
        self, x: Tensor, taps: Taps, prepare: Function, convolve: Function, spread: Function, frames: int
    ) -> Tensor:
        """One frame more is kept than the window needs: it tells which frame of the window is the clip's first."""
        extended = self.extend(x, Taps(taps.count + 1, taps.ahead, Border.ZEROS))
        inside = self._inside(extended.shape[2])
        later = inside[:, 1:, 1:] * inside[:, :-1, :-1]  # ones for frames of the clip, its first one excepted
        extended = extended[:, :, 1:]
        made = convolve(_choose(later, prepare(extended)))
        own = slice(taps.before, taps.before + x.shape[2])
        later = later[:, own, own]
        first = _choose(self._identities[x.shape[2]] - later, extended[:, :, own])
        return spread(_choose(later, made)) + _repeated(first, frames)

    def _inside(self, frames: int) -> Tensor:
        """(1, m, m) with ones on the diagonal for the frames of the clip, of the next select."""
        return next(self._selects) * self._identities[frames]


class Survey(Call):
    """A call on shapes alone, which finds what a segment needs and gives.

    Attributes:
        at: where the frames stand that the next layer takes.
        convs, states: of the segment, in order.
        halo: rows of the frames so far that are wrong at an edge of the window that is no edge of the frame.
        identities: sizes of the identity matrices that its calls need.
    """

    def __init__(self, lead: int = 0) -> None:
        super().__init__((), (), {})
        self.at = Timeline(delay=lead)
        self.convs: list[TimeConv] = []
        self.states: list[tuple[int, ...]] = []
        self.halo = 0
        self.identities: set[int] = set()

    def extend(self, x: Tensor, taps: Taps) -> Tensor:
        self.convs.append(TimeConv(taps.count, self.at))
        held = x.new_empty((1, x.shape[1], taps.count - 1, *x.shape[3:]))
        self.states.append(tuple(as_frames(held).shape))
        return torch.cat([held, x], dim=2)

    def border(self, extended: Tensor, taps: Taps) -> Tensor:
        self.at = self.at.then(Timeline(delay=taps.ahead))
        if taps.border is Border.ZEROS:
            self.identities.add(extended.shape[2])
        return extended

    def reach(self, rows: int) -> None:
        self.halo += rows

    def grow(self, y: Tensor, frames: int, dropped: int, scale: int) -> Tensor:
        self.at = self.at.then(Timeline(frames, dropped, dropped))
        self.halo *= scale
        return y

    def delayed(self, extended: Tensor, taps: Taps, delay: int) -> Tensor:
        self.at = self.at.then(Timeline(delay=delay))
        return super().delayed(extended, taps, delay)

    def both(self, branch: Callable[[], Tensor], shortcut: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        at, halo = self.at, self.halo
        y = branch()
        end, reached = self.at, self.halo
        self.at, self.halo = at, halo
        past = shortcut()
        if self.at != end:
            raise ExportError(f"A branch stands at {end} and its shortcut at {self.at}: their frames differ.")
        self.halo = max(self.halo, reached)
        return y, past

    def first_alone(
        self, x: Tensor, taps: Taps, prepare: Function, convolve: Function, spread: Function, frames: int
    ) -> Tensor:
        extended = self.extend(x, Taps(taps.count + 1, taps.ahead, Border.ZEROS))
        self.identities |= {extended.shape[2], x.shape[2]}
        self.at = self.at.then(Timeline(frames, taps.ahead * frames + frames - 1, frames - 1))
        return spread(convolve(prepare(extended[:, :, 1:])))


def _choose(select: Tensor, clip: Tensor) -> Tensor:
    """For each row of a select (1, p, m), the frame of a clip of m frames that it has a one for; zeros for none."""
    _, c, m, h, w = clip.shape
    # A product of whole frames: the one form of choosing that every runtime has, and exact.
    chosen = torch.bmm(select, as_frames(clip).reshape(1, m, c * h * w))
    return as_clip(chosen.reshape(select.shape[1], c, h, w))


def _repeated(clip: Tensor, times: int) -> Tensor:
    """Each frame so many times."""
    _, c, t, h, w = clip.shape
    frames = as_frames(clip).reshape(t, 1, c * h * w)
    return as_clip(torch.cat([frames] * times, dim=1).reshape(t * times, c, h, w))
