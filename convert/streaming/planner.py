"""The choice of cuts, chunks, passes and strips for a memory budget.

Where to cut is a trade. Of a segment of several units all units compute the frames that those behind the first
only look ahead at, and a clip has that many frames more; a segment of its own needs buffers for its input and
output. Larger chunks cost less per frame and more memory. A pass holds only its own weights and states, and writes
its frames to a file for the next one. Strips make everything lower, and the rows around them are computed twice.

The search: the best passes up to each unit, from those up to the units before it; of passes in strips that are not
the last, those of a few units. In each pass a shortest path over the cuts and chunks, for several limits of a
program's own activations and several prices of a buffer's byte. It takes the size of a unit to be linear in the
frames of a call; what it chooses is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from handheld.runtime.stream_plan import Segment, Timeline

from .cuts import Cut, PassCut
from .memory import StreamSize, UnitSizes, passing_bytes, stream_size
from .overheads import Overhead
from .program_size import ProgramSize
from .units import is_causal, units_of

_CHUNKS = (*range(1, 11), 12, 14, 16)  # close together: where few calls make a clip, the last is rarely full
_STEPS = (1, 2, 4, 8, 16)  # of a causal decoder, whose segments keep in step
_STRIPS = (1, 2, 3, 4, 6, 8, 12, 16)
_MOST_STRIPPED = 4  # units of a pass in strips that is not the last: the rows around them grow with each
_MOST_UNITS = 10  # of a segment: what more look ahead together is waste everywhere

# Multiply-adds in the time of moving a byte, on a CPU: what makes small chunks, with their share of frames that are
# only kept, cost what they do.
_WORK_PER_BYTE = 8

# The same of a byte that goes to a file or comes from one, at about 0.5 GB/s.
_WORK_PER_FILE_BYTE = 128

# More work than one pass over the whole frame that a plan with temporary files must save: until its last pass it
# gives no frame.
_SPOOLED = 1.25

# Part of a budget that a plan leaves, as memory is predicted within a few per cent.
_KEPT_FREE = 0.03

# The search is repeated with a smaller budget where what it chose is larger than it took it to be: a little
# smaller, as one pass that was taken for too small makes all others smaller too.
_TRIES = 10
_SMALLER = 0.92

# Frames of a call in which units are measured; a Winograd tile makes two frames at least.
_MEASURED_AT = 4
_TILE = 2


@dataclass(frozen=True)
class _Unit:
    """A unit on whole frames, and what a call of `_MEASURED_AT` frames needs.

    Attributes:
        segment: of this unit alone.
        kept: frames of state in front of its largest convolution's input.
    """

    segment: Segment
    size: ProgramSize
    kept: int

    @property
    def rows(self) -> int:
        return self.segment.input[2]

    @property
    def own(self) -> Timeline:
        """Its output against its input, wherever it stands in a segment."""
        end = self.segment.end
        return replace(end, delay=end.delay - self.segment.lead * end.rate)

    @property
    def state_size(self) -> int:
        """Elements of the states."""
        return sum(map(math.prod, self.segment.states))

    def share(self, chunk: int) -> float:
        """What a call of `chunk` frames needs of memory, against what was measured."""
        return (self.kept + chunk) / (self.kept + _MEASURED_AT)

    def work(self, chunk: int) -> float:
        """Of a call."""
        tiles = -(-chunk // _TILE) / (_MEASURED_AT / _TILE)
        return self.size.multiply_adds * tiles + _WORK_PER_BYTE * self.size.moved_bytes * self.share(chunk)

    @property
    def least_work(self) -> float:
        """Per frame of the largest calls."""
        bytes_per_frame = self.size.moved_bytes / (self.kept + _MEASURED_AT)
        return self.size.multiply_adds / _MEASURED_AT + _WORK_PER_BYTE * bytes_per_frame


@dataclass(frozen=True)
class _Option:
    """A run of units as a segment with a chunk, in a pass of some strips.

    Attributes:
        first, stop: of the units.
        work: for the whole clip and all strips.
        buffer_bytes: of x and y.
        inner_bytes: of activations, those that count on the runtime.
        state_bytes: of the states.
    """

    first: int
    stop: int
    chunk: int
    work: float
    buffer_bytes: float
    inner_bytes: float
    state_bytes: float


@dataclass(frozen=True)
class _Solution:
    """The cuts of a pass, and what they cost."""

    cuts: tuple[Cut, ...]
    work: float


class Planner:
    """Chooses cuts for budgets.

    Args:
        frames: of the latents.
    """

    def __init__(self, sizes: UnitSizes, frames: int, overhead: Overhead) -> None:
        self.sizes, self.frames, self.overhead = sizes, frames, overhead
        self.itemsize = sizes.precision.dtype.itemsize
        self._units = [
            _Unit(segment, sizes.of_unit(index, _MEASURED_AT), _kept(segment))
            for index, segment in enumerate(sizes.segments(_MEASURED_AT))
        ]
        self._lengths = [frames]
        for unit in self._units:
            self._lengths.append(unit.segment.end.length(self._lengths[-1]))

    def fitting(self, budget_bytes: int) -> tuple[tuple[PassCut, ...], StreamSize] | None:
        """The fastest cuts within `budget_bytes`, a little of it left, and their size; None if there are none."""
        target_bytes = (1 - _KEPT_FREE) * budget_bytes
        allowed = target_bytes
        for _ in range(_TRIES):
            found = [plan for step in self._steps() if (plan := self._search(allowed, step))]
            if not found:
                return None
            _, cuts = min(found, key=lambda plan: plan[0])
            size = self.size(cuts)
            peak = max(size.peak_bytes)
            if peak <= target_bytes:
                return cuts, size
            allowed *= max(0.98 * target_bytes / peak, _SMALLER)
        return None

    def state_bytes(self) -> dict[str, int]:
        """Of each unit, by its name: the frames that it keeps, whole ones."""
        return {unit.segment.units[0]: self._state_bytes(unit) for unit in self._units}

    def _state_bytes(self, unit: _Unit) -> int:
        return unit.state_size * self.itemsize

    def size(self, cuts: Sequence[PassCut]) -> StreamSize:
        return stream_size(cuts, self.frames, self.sizes, self.overhead)

    def _steps(self) -> tuple[int | None, ...]:
        """Latent frames that all segments take at a time, or None where each may take its own number of frames.

        In a causal decoder frames would wait for the next latent where segments are out of step.
        """
        return _STEPS if is_causal(units_of(self.sizes.model).values()) else (None,)

    def _search(self, budget: float, step: int | None) -> tuple[float, tuple[PassCut, ...]] | None:
        """The work and the cuts of the fastest plan of a budget."""
        count = len(self._units)
        whole = self._solve(0, count, 1, budget, step)
        best: dict[int, tuple[float, tuple[PassCut, ...]]] = {0: (0.0, ())}
        for stop in range(1, count + 1):
            for first, strips in self._passes(stop):
                if first not in best:
                    continue
                before, cuts = best[first]
                before += self._spooling(stop) if stop < count or strips > 1 else 0.0
                if stop in best and before + self._least_work(first, stop, strips) >= best[stop][0]:
                    continue
                last = self._solve(first, stop, strips, budget, step)
                if last and (stop not in best or before + last.work < best[stop][0]):
                    best[stop] = before + last.work, (*cuts, PassCut(last.cuts, strips))
        if count in best:
            work, cuts = best[count]
            if whole is None or work * _SPOOLED < whole.work:
                return work * _SPOOLED, cuts
        return (whole.work, (PassCut(whole.cuts),)) if whole else None

    def _passes(self, stop: int) -> Iterator[tuple[int, int]]:
        """First unit and strips of the passes that may end before a unit; the likely ones first."""
        for first in range(stop):
            yield first, 1
        last = stop == len(self._units)
        for strips in _STRIPS[1:]:
            for first in range(0 if last else max(0, stop - _MOST_STRIPPED), stop):
                yield first, strips

    def _spooling(self, stop: int) -> float:
        """Work of writing and reading the frames between two passes."""
        _, c, h, w = self._units[stop - 1].segment.output
        return 2.0 * _WORK_PER_FILE_BYTE * self._lengths[stop] * c * h * w * self.itemsize

    def _least_work(self, first: int, stop: int, strips: int) -> float:
        """No pass of these units takes less."""
        rows = self._rows(first, stop, strips)
        if rows is None:
            return math.inf
        units, lengths = self._units[first:stop], self._lengths[first:stop]
        return strips * sum(u.least_work * n * own / u.rows for u, n, own in zip(units, lengths, rows))

    def _solve(self, first: int, stop: int, strips: int, budget: float, step: int | None) -> _Solution | None:
        """The cuts of a pass with the least work, of those that fit."""
        rows = self._rows(first, stop, strips)
        if rows is None:
            return None
        parts = [own / unit.rows for own, unit in zip(rows, self._units[first:stop])]
        left = budget - self._held_bytes(first, stop, parts)
        if left <= 0:
            return None
        options = [o for o in self._options(first, stop, parts, strips, step) if self._workspace_bytes([o]) < left]
        best: _Solution | None = None
        limits = sorted({option.inner_bytes for option in options})
        for limit in limits[:: max(1, len(limits) // 12)]:
            usable = [option for option in options if option.inner_bytes <= limit]
            for price in (0.0, 1.0, 10.0, 100.0, 1000.0, 10_000.0):
                path = _shortest(usable, first, stop, price)
                if path is None:
                    break
                work = sum(option.work for option in path)
                if best is not None and work >= best.work:
                    break  # a higher price is more work
                if sum(option.buffer_bytes for option in path) + self._workspace_bytes(path) <= left:
                    best = _Solution(tuple(Cut(o.stop - o.first, o.chunk) for o in path), work)
                    break
        return best

    def _held_bytes(self, first: int, stop: int, parts: Sequence[float]) -> float:
        """What a pass holds whatever its cuts are; `parts` of the rows of each unit."""
        units = self._units[first:stop]
        held = [(ProgramSize(unit.size.weight_bytes, 0, 0, 0, 0), 0, 0) for unit in units]
        states = sum(self._state_bytes(unit) * part for unit, part in zip(units, parts))
        read = math.prod(units[0].segment.input[1:]) * parts[0] if first else 0
        given = math.prod(units[-1].segment.output[1:]) if stop == len(self._units) else 0
        return (
            self.overhead.peak_bytes(held)
            + states * (2 if self.overhead.owns_outputs else 1)
            + passing_bytes(int(read), given, self.itemsize)
        )

    def _workspace_bytes(self, path: Sequence[_Option]) -> float:
        """What a pass's segments need at most while one runs, beside x, y and the states."""
        inner = self.overhead.workspace_bytes(option.inner_bytes for option in path)
        return inner + (0.0 if self.overhead.owns_outputs else max(option.state_bytes for option in path))

    def _rows(self, first: int, stop: int, strips: int) -> list[int] | None:
        """Rows of each unit's input in a strip; None if there is no such pass."""
        height = self._units[stop - 1].segment.input[2] * self._units[stop - 1].segment.scale
        if strips > height:
            return None
        wanted = -(-height // strips)
        rows: list[int] = []
        for unit in reversed(self._units[first:stop]):
            segment = unit.segment
            wanted = min(-(-wanted // segment.scale) + 2 * -(-segment.halo // segment.scale), unit.rows)
            rows.append(wanted)
        return rows[::-1]

    def _options(
        self, first: int, stop: int, parts: Sequence[float], strips: int, step: int | None
    ) -> Iterator[_Option]:
        """Every segment that the pass may have, in the order of their first units."""
        for start in range(first, stop):
            rate = math.prod(unit.segment.end.rate for unit in self._units[:start])
            for chunk in _CHUNKS if step is None else (step * rate,):
                yield from self._from(first, start, stop, chunk, parts, strips)

    def _from(
        self, first: int, start: int, stop: int, chunk: int, parts: Sequence[float], strips: int
    ) -> Iterator[_Option]:
        at = Timeline(delay=self._units[start].segment.lead)
        x_bytes = self.itemsize * chunk * math.prod(self._units[start].segment.input[1:]) * parts[start - first]
        work = inner = states = 0.0
        for index in range(start, min(stop, start + _MOST_UNITS)):
            unit, part = self._units[index], parts[index - first]
            now = chunk * at.rate
            work += unit.work(now) * part
            inner = max(inner, self.overhead.inner_bytes(unit.size) * unit.share(now) * part)
            states += self._state_bytes(unit) * part
            at = at.then(unit.own)
            y_bytes = self.itemsize * chunk * at.rate * math.prod(unit.segment.output[1:]) * part
            calls = -(-(self._lengths[index + 1] + at.delay) // (chunk * at.rate))
            yield _Option(start, index + 1, chunk, work * calls * strips, x_bytes + y_bytes, inner, states)


def _shortest(options: Sequence[_Option], first: int, stop: int, price: float) -> list[_Option] | None:
    """Segments from the first unit to the last with the least work, a byte of buffers priced at so much of it."""
    costs: dict[int, float] = {first: 0.0}
    chosen: dict[int, _Option] = {}
    for option in options:  # by their first unit
        if option.first in costs:
            cost = costs[option.first] + option.work + price * option.buffer_bytes
            if cost < costs.get(option.stop, math.inf):
                costs[option.stop] = cost
                chosen[option.stop] = option
    if stop not in chosen:
        return None
    path: list[_Option] = []
    while stop != first:
        path.insert(0, chosen[stop])
        stop = chosen[stop].first
    return path


def _kept(segment: Segment) -> int:
    """Frames that a call of the segment takes again, of those that it kept."""
    return max((conv.kernel - 1 for conv in segment.convs), default=0)
