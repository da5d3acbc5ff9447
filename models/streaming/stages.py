"""Layers as stages, which take a clip piece by piece and make any rows of it: one stage for each kind of layer.

A stage holds the last frames of its input that it still needs, without border frames: it has its own borders, so
that no halo in time is recomputed and nothing is blended. Tensors are (N, C, t, H, W).

To make certain rows of the frames, each stage makes just the rows that the stages behind it need. A layer that
reads k rows around each needs k more at each edge that is no edge of the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..layers import Chain, FirstAlone, Framewise, Growth, Layer, Residual, WholeOnly, Window, bordered, in_turn
from .rows import Rows

_ALL = slice(None)


class Stage:
    """A layer that takes a clip's frames piece by piece."""

    def push(self, x: Tensor) -> Tensor | None:
        """Take the next frames; give those that are final by now, None if there are none yet."""
        raise NotImplementedError

    def flush(self) -> Iterator[Tensor]:
        """End the clip: give its last frames. Exhausted, it leaves the stage empty, as before the first push."""
        yield from ()

    def state(self) -> list[Tensor]:
        """What is held between pushes, each with storage of its own."""
        return []

    def restrict(self, rows: Rows) -> Rows:
        """Make these rows only, from now on. Returns the rows of the input that it then takes."""
        return rows


class FramewiseStage(Stage):
    """Holds nothing."""

    crop = _ALL

    def __init__(self, layer: Framewise) -> None:
        self.layer = layer

    def push(self, x: Tensor) -> Tensor:
        return in_turn(self.layer.functions, x)[..., self.crop, :]

    def restrict(self, rows: Rows) -> Rows:
        taken = rows.widened(self.layer.rows)
        self.crop = rows.of(taken)
        return taken


class GrowthStage(Stage):
    """Holds nothing. Only a clip's first frames are dropped."""

    crop = _ALL

    def __init__(self, layer: Growth) -> None:
        self.layer = layer
        self.dropping = layer.dropped  # frames that are yet to be dropped

    def push(self, x: Tensor) -> Tensor | None:
        y = in_turn(self.layer.functions, x)[..., self.crop, :]
        dropped = min(self.dropping, y.shape[2])
        self.dropping -= dropped
        return y[:, :, dropped:] if dropped < y.shape[2] else None

    def flush(self) -> Iterator[Tensor]:
        self.dropping = self.layer.dropped
        yield from ()

    def restrict(self, rows: Rows) -> Rows:
        taken = rows.before(self.layer.scale).widened(self.layer.rows)
        self.crop = rows.of(taken.after(self.layer.scale))
        return taken


class WindowStage(Stage):
    """Holds the frames that the next window has of the clip, `taps.count` - 1 of them at most."""

    crop = _ALL

    def __init__(self, layer: Window) -> None:
        self.layer = layer
        self.before = layer.taps.before  # border frames at the start of the next window
        self.held: Tensor | None = None

    def push(self, x: Tensor) -> Tensor | None:
        return self.take(x)[1]

    def take(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `push`; also gives the frames that were held and the next ones, together."""
        frames = x if self.held is None else torch.cat([self.held, x], dim=2)
        made = self.before + frames.shape[2] - self.layer.taps.count + 1
        if made < 1:
            self.held = frames.clone()  # a view would keep all of x alive
            return frames, None
        y = self._make(frames, self.before, 0)
        self._advance(frames, made)
        return frames, y

    def flush(self) -> Iterator[Tensor]:
        for _, y in self.tail():
            yield y
        self.clear()

    def tail(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The last frames, as `take` gives them. What the layer behind may need of the input stays."""
        count, ahead = self.layer.taps.count, self.layer.taps.ahead
        if self.held is None:
            return
        # One at a time: a piece of several low-resolution frames would be many more at full resolution.
        for _ in range(self.before + self.held.shape[2] + ahead - count + 1):
            frames = self.held
            own = frames[:, :, : count - self.before]
            y = self._make(own, self.before, count - self.before - own.shape[2])
            self._advance(frames, 1)
            yield frames, y

    def clear(self) -> None:
        """Forget the clip."""
        self.before, self.held = self.layer.taps.before, None

    def state(self) -> list[Tensor]:
        return [] if self.held is None else [self.held]

    def restrict(self, rows: Rows) -> Rows:
        taken = rows.widened(self.layer.rows)
        self.crop = rows.of(taken)
        return taken

    def _make(self, frames: Tensor, before: int, after: int) -> Tensor:
        x = bordered(in_turn(self.layer.prepare, frames), self.layer.taps.border, before, after)
        return in_turn(self.layer.functions, x)[..., self.crop, :]

    def _advance(self, frames: Tensor, made: int) -> None:
        """Go on by so many windows."""
        gone = max(made - self.before, 0)
        self.before = max(self.before - made, 0)
        self.held = frames[:, :, gone:].clone() if gone < frames.shape[2] else None


class ChainStage(Stage):
    """Stages one after the other, depth first."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages

    def push(self, x: Tensor) -> Tensor | None:
        return self._push(x, 0)

    def flush(self) -> Iterator[Tensor]:
        for i, stage in enumerate(self.stages):
            for tail in stage.flush():
                y = self._push(tail, i + 1)
                if y is not None:
                    yield y

    def state(self) -> list[Tensor]:
        return [held for stage in self.stages for held in stage.state()]

    def restrict(self, rows: Rows) -> Rows:
        for stage in reversed(self.stages):
            rows = stage.restrict(rows)
        return rows

    def _push(self, x: Tensor, start: int) -> Tensor | None:
        y: Tensor | None = x
        for stage in self.stages[start:]:
            if y is None:
                return None
            y = stage.push(y)
        return y


class FirstAloneStage(Stage):
    """Gives the clip's first frame at once; holds what its window holds of the others."""

    crop = _ALL

    def __init__(self, layer: FirstAlone) -> None:
        self.others = ChainStage([WindowStage(layer.window), GrowthStage(layer.growth)])
        self.first = True

    def push(self, x: Tensor) -> Tensor | None:
        if not self.first:
            return self.others.push(x)
        self.first = False
        first = x[:, :, :1, self.crop]
        y = self.others.push(x[:, :, 1:]) if x.shape[2] > 1 else None
        return first if y is None else torch.cat([first, y], dim=2)

    def flush(self) -> Iterator[Tensor]:
        yield from self.others.flush()
        self.first = True

    def state(self) -> list[Tensor]:
        return self.others.state()

    def restrict(self, rows: Rows) -> Rows:
        taken = self.others.restrict(rows)
        self.crop = rows.of(taken)
        return taken


class ResidualStage(Stage):
    """Holds what its two sides hold, and what the shortcut makes until the branch has made its part."""

    def __init__(self, layer: Residual) -> None:
        self.branch, self.shortcut = chain_of(layer.branch), chain_of(layer.shortcut)
        self.branch_rows = self.shortcut_rows = _ALL
        self.waiting: Tensor | None = None
        layer.waits  # noqa: B018  refuses what cannot be added

    def push(self, x: Tensor) -> Tensor | None:
        past = self.shortcut.push(x[..., self.shortcut_rows, :])
        if past is not None:
            self._wait(past)
        y = self.branch.push(x[..., self.branch_rows, :])
        if y is not None:
            return self._add(y)
        if self.waiting is not None:
            self.waiting = self.waiting.clone()  # it may be a view of x
        return None

    def flush(self) -> Iterator[Tensor]:
        for past in self.shortcut.flush():
            self._wait(past)
        for y in self.branch.flush():
            yield self._add(y)

    def state(self) -> list[Tensor]:
        waiting = [] if self.waiting is None else [self.waiting]
        return self.branch.state() + self.shortcut.state() + waiting

    def restrict(self, rows: Rows) -> Rows:
        branch, shortcut = self.branch.restrict(rows), self.shortcut.restrict(rows)
        taken = branch.joined(shortcut)
        self.branch_rows, self.shortcut_rows = branch.of(taken), shortcut.of(taken)
        return taken

    def _wait(self, past: Tensor) -> None:
        self.waiting = past if self.waiting is None else torch.cat([self.waiting, past], dim=2)

    def _add(self, y: Tensor) -> Tensor:
        assert self.waiting is not None  # the shortcut is never later
        past, rest = self.waiting[:, :, : y.shape[2]], self.waiting[:, :, y.shape[2] :]
        self.waiting = rest.clone() if rest.shape[2] else None
        return y + past


class SharedResidualStage(Stage):
    """A residual layer whose first window holds the frames for the shortcut too."""

    crop = _ALL

    def __init__(self, layer: Residual) -> None:
        first: Any = layer.branch[0]
        self.first, self.rest = WindowStage(first), chain_of(layer.branch[1:])
        self.shortcut = chain_of(layer.shortcut)
        self.timing = layer.timing
        self.taken = self.made = 0  # frames of the clip

    def push(self, x: Tensor) -> Tensor | None:
        self.taken += x.shape[2]
        frames, y = self.first.take(x)
        y = None if y is None else self.rest.push(y)
        return None if y is None else self._add(y, frames)

    def flush(self) -> Iterator[Tensor]:
        for frames, made in self.first.tail():
            y = self.rest.push(made)
            if y is not None:
                yield self._add(y, frames)
        for y in self.rest.flush():
            assert self.first.held is not None  # the first window has seen all that the others have
            yield self._add(y, self.first.held)
        for _ in self.shortcut.flush():  # nothing is left in it
            pass
        self.first.clear()
        self.taken = self.made = 0

    def state(self) -> list[Tensor]:
        return self.first.state() + self.rest.state()

    def restrict(self, rows: Rows) -> Rows:
        first = self.rest.restrict(rows)
        shortcut = self.shortcut.restrict(rows)
        taken = self.first.restrict(first).joined(shortcut)
        self.first.crop, self.crop = first.of(taken), shortcut.of(taken)
        return taken

    def _add(self, y: Tensor, frames: Tensor) -> Tensor:
        """The branch's next frames and their shortcuts, of frames that end with the last one taken."""
        rate, dropped = self.timing.rate, self.timing.dropped
        done = (self.made + dropped) // rate if self.made else 0
        self.made += y.shape[2]
        start = frames.shape[2] - (self.taken - done)
        stop = start + (self.made + dropped) // rate - done
        past = self.shortcut.push(frames[:, :, start:stop, self.crop])
        assert past is not None  # it looks ahead at nothing
        return y + past


def _residual(layer: Residual) -> Stage:
    return SharedResidualStage(layer) if layer.shared_delay else ResidualStage(layer)


def _refuse(layer: WholeOnly) -> Stage:
    raise layer.refusal


_STAGES: dict[type[Layer], Callable[[Any], Stage]] = {
    Framewise: FramewiseStage,
    Growth: GrowthStage,
    Window: WindowStage,
    FirstAlone: FirstAloneStage,
    Chain: lambda layer: chain_of(layer.layers),
    Residual: _residual,
    WholeOnly: _refuse,
}


def stage_of(layer: Layer) -> Stage:
    """A layer as a stage, which shares its modules. Raises ModelError for a layer that needs the whole clip."""
    if type(layer) not in _STAGES:
        raise ModelError(
            f"Cannot stream a layer of kind {type(layer).__name__}: it is none of handheld.models.layers."
        )
    return _STAGES[type(layer)](layer)


def chain_of(layers: Sequence[Layer]) -> ChainStage:
    """Layers as a chain of stages. One chain decodes one clip at a time."""
    return ChainStage([stage_of(layer) for layer in layers])
