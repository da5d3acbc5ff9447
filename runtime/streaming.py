"""Decoding a clip of any length with a streamed artefact: who calls which program with what.

`docs/streaming.md` describes the same for runners in other languages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from .errors import RuntimeFailure
from .manifest import Artifact, TensorSpec
from .spool import Spool
from .stream_plan import Pass, Segment, StreamPlan, Strip

Arrays = dict[str, np.ndarray]


class SegmentProgram(Protocol):
    """A loaded segment."""

    threads: int | None

    def call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Run once, from and to contiguous arrays in the segment's order, shapes and dtype.

        Returns `outputs`, or arrays of the program's own that hold until its next call.
        """

    def close(self) -> None:
        """Release the program."""


class _Stage:
    """A segment on one strip of one clip. Frames are (t, C, rows, W), of the strip's window."""

    def __init__(self, segment: Segment, program: SegmentProgram, scratch: np.ndarray) -> None:
        self.segment, self.program = segment, program
        self.x = np.zeros(segment.input, scratch.dtype)
        # Where the program writes to memory of its own, nothing touches these pages and they take no memory.
        self._y = np.empty(segment.output, scratch.dtype)
        self.states = [np.zeros(shape, scratch.dtype) for shape in segment.states]
        ends = list(accumulate(state.size for state in self.states))
        parts = (scratch[end - state.size : end] for end, state in zip(ends, self.states))
        self._new_states = [part.reshape(state.shape) for part, state in zip(parts, self.states)]
        self.calls = 0
        # Frames of x that are in place. If negative, as many frames go into the first state before x is filled.
        self.filled = segment.lead

    @property
    def taken(self) -> int:
        """Frames of the clip so far."""
        return self.calls * self.segment.chunk + self.filled - self.segment.lead

    def push(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        """Take frames, and give those that are final by now. A piece is valid until the next one is asked for."""
        while len(frames):
            early = self.filled < 0
            room = self.states[0][self.filled :] if early else self.x[self.filled :]
            part = frames[: len(room)]
            room[: len(part)] = part
            self.filled += len(part)
            frames = frames[len(part) :]
            if self.filled == self.segment.chunk:
                yield from self._call(None)

    def finish(self) -> Iterator[np.ndarray]:
        """End the clip: give its last frames."""
        total = self.taken
        while self.calls < self.segment.calls(total):
            filled = max(self.filled, 0)
            # Fill up with the last frame. If this call has no frame of its own, that is x[-1] of the call before,
            # or zeros. The copy is made here, because numpy would copy overlapping memory once for each frame.
            self.x[filled:] = self.x[filled - 1].copy()
            yield from self._call(total)

    def _call(self, total: int | None) -> Iterator[np.ndarray]:
        selects = [select.astype(self.x.dtype) for select in self.segment.selects(self.calls, total)]
        y, *new_states = self.program.call([self.x, *selects, *self.states], [self._y, *self._new_states])
        for state, new in zip(self.states, new_states):
            np.copyto(state, new)
        valid = self.segment.valid(self.calls, total)
        self.calls += 1
        self.filled = 0
        if valid:
            yield y[valid.start : valid.stop]


class _Chain:
    """The segments of a pass on one strip, depth first. Frames are (t, C, rows, W)."""

    def __init__(self, part: Pass, strip: Strip, programs: Sequence[SegmentProgram], dtype: np.dtype) -> None:
        # Segments share the memory for new states, as one call runs at a time. A set for each would be most of all
        # memory.
        most = max(sum(map(math.prod, segment.states)) for segment in part.segments)
        scratch = np.empty(most, dtype)
        self.stages = [_Stage(segment, program, scratch) for segment, program in zip(part.segments, programs)]
        # Where each stage's window lies in the rows of the stage before; last, where the strip's rows lie.
        tops = [0, *(start * segment.scale for start, segment in zip(strip.starts, part.segments))]
        starts = [0, *strip.starts[1:], strip.first_row]
        heights = [*(segment.input[2] for segment in part.segments), strip.rows]
        self._rows = [slice(start - top, start - top + rows) for start, top, rows in zip(starts, tops, heights)]

    def run(self, arriving: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """All of a clip."""
        for frames in arriving:
            yield from self.push(frames)
        yield from self.finish()

    def push(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        yield from self._push(frames, 0)

    def finish(self) -> Iterator[np.ndarray]:
        for index, stage in enumerate(self.stages, start=1):
            for frames in stage.finish():
                yield from self._push(frames, index)

    def _push(self, frames: np.ndarray, index: int) -> Iterator[np.ndarray]:
        frames = frames[:, :, self._rows[index]]
        if index == len(self.stages):
            yield frames
            return
        for out in self.stages[index].push(frames):
            yield from self._push(out, index + 1)


class StreamSession:
    """A loaded streamed artefact: clips of any length, of one height and width. Use it in a `with`, or close it.

    One pass keeps its programs loaded; of several passes each loads its own and releases them at its end.

    Args:
        plan: how to run it.
        load: loads a segment's program.
        artifact: its entry in the manifest.
        inputs, outputs: the bundle's specs: latents and frames.

    Attributes:
        threads: what the runtime uses, None where it does not say.
    """

    def __init__(
        self,
        plan: StreamPlan,
        load: Callable[[Segment], SegmentProgram],
        artifact: Artifact,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        self.plan = plan
        self.artifact = artifact
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.dtype = np.dtype(artifact.input_dtype)
        self.threads: int | None = None
        self._load = load
        self._closed = False
        self._kept = ExitStack()
        self._programs: list[SegmentProgram] = []
        if len(plan.passes) == 1:
            self._programs = self._loaded(plan.passes[0], self._kept)

    def stream(self, latents: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Decode a clip piece by piece.

        Args:
            latents: (1, C, T', H', W') floating point, or an iterable of such pieces of one clip, in order. They
                are asked for as they are needed; a first pass in strips needs them all.

        Returns:
            Iterator of frames (1, 3, 1, H, W) in order, float32 (float64 for programs in that), NCTHW.

        Raises RuntimeFailure for latents of another shape, none at all, and what a runtime reports.
        """
        pieces = (latents,) if isinstance(latents, np.ndarray) else latents
        arriving = (self._frames_first(piece) for piece in pieces)
        with ExitStack() as spools:
            read = _once(arriving)
            if len(self.plan.passes[0].strips) > 1:
                read = _again(list(arriving))
            before: Spool | None = None
            for part in self.plan.passes[:-1]:
                spool = spools.enter_context(Spool(part.output, self.dtype))
                with self._running(part) as programs:
                    for _ in self._into(spool, part, programs, read):
                        pass
                if before is not None:
                    before.close()  # all of them together may be more than a disk has
                before, read = spool, spool.windows
            last = self.plan.passes[-1]
            with self._running(last) as programs:
                if len(last.strips) == 1:
                    chain = _Chain(last, last.strips[0], programs, self.dtype)
                    first = last.segments[0]
                    out = chain.run(_at_least_one(read(last.strips[0].starts[0], first.input[2])))
                else:
                    spool = spools.enter_context(Spool(last.output, self.dtype))
                    out = self._into(spool, last, programs, read)
                # One by one: the caller's frame and the next one, not two calls' worth of them.
                for frames in out:
                    for index in range(len(frames)):
                        yield self._frames(frames[index : index + 1])

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """As `Session.run`, for a whole clip of any length."""
        (given,), (made,) = ([spec.name for spec in specs] for specs in (self.inputs, self.outputs))
        if set(inputs) != {given}:
            raise RuntimeFailure(f'The inputs are {", ".join(inputs) or "none"}; "{given}" is needed.')
        return {made: np.concatenate([*self.stream(inputs[given])], axis=2)}

    def clip(self, state: bytes | None = None) -> Clip:
        """A clip whose latents are pushed as they come; from a saved state, one that goes on.

        Raises RuntimeFailure for a plan of several passes or strips, and a state that is not one of this artefact.
        """
        part = self.plan.passes[0]
        if len(self.plan.passes) > 1 or len(part.strips) > 1:
            raise RuntimeFailure(
                "This plan has several passes or strips, each over the whole clip: latents cannot be pushed one by "
                "one. Decode with stream(), or export with a larger budget."
            )
        return Clip(self, _Chain(part, part.strips[0], self._programs, self.dtype), state)

    def _into(
        self, spool: Spool, part: Pass, programs: Sequence[SegmentProgram], read: _Read
    ) -> Iterator[np.ndarray]:
        """Decode a pass into its spool; yields the frames that are whole in it."""
        for strip in part.strips:
            for written in self._strip_into(spool, part, strip, programs, read):
                if strip is part.strips[-1] and part is self.plan.passes[-1]:
                    for index in written:
                        yield spool.read(index, index + 1)

    def _strip_into(
        self, spool: Spool, part: Pass, strip: Strip, programs: Sequence[SegmentProgram], read: _Read
    ) -> Iterator[range]:
        """Decode a strip of a pass into its spool; yields which frames were written.

        This is a function of its own so that a strip's buffers are released before the next strip takes its own.
        When two sets existed at a time, the heap grew from strip to strip: by a third for such a pass of `hunyuan`
        at 720x1280.
        """
        chain = _Chain(part, strip, programs, self.dtype)
        done = 0
        for frames in chain.run(_at_least_one(read(strip.starts[0], part.segments[0].input[2]))):
            spool.write(frames, done, strip.first_row)
            yield range(done, done + len(frames))
            done += len(frames)

    @contextmanager
    def _running(self, part: Pass) -> Iterator[list[SegmentProgram]]:
        if self._closed:
            raise RuntimeFailure("The session is closed. Open a new one.")
        if self._programs:
            yield self._programs
            return
        with ExitStack() as stack:
            yield self._loaded(part, stack)

    def _loaded(self, part: Pass, stack: ExitStack) -> list[SegmentProgram]:
        programs = []
        try:
            for segment in part.segments:
                programs.append(self._load(segment))
                self.threads = programs[-1].threads
                stack.callback(programs[-1].close)
        except BaseException:
            stack.close()
            raise
        return programs

    def _frames_first(self, latents: np.ndarray) -> np.ndarray:
        """Checked latents (1, C, T', H', W') as (T', C, H', W')."""
        _, channels, _, height, width = self.inputs[0].shape
        shape = getattr(latents, "shape", type(latents).__name__)
        wanted = (1, channels, *shape[2:3], height, width) if isinstance(shape, tuple) else None
        if shape != wanted or not shape[2] or latents.dtype.kind != "f":
            raise RuntimeFailure(
                f"Latents are {getattr(latents, 'dtype', '')} {shape}; this artefact takes floating-point "
                f"(1, {channels}, 1 or more frames, {height}, {width}). Another height or width is another export."
            )
        return latents[0].transpose(1, 0, 2, 3)

    def _frames(self, frames: np.ndarray) -> np.ndarray:
        """(t, C, H, W) to a copy in NCTHW."""
        return frames.transpose(1, 0, 2, 3)[None].astype(np.promote_types(self.dtype, np.float32), order="C")

    def close(self) -> None:
        """Release all programs. A closed session cannot run."""
        self._closed = True
        self._kept.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Clip:
    """A clip in the making, of `StreamSession.clip`. Sessions may have several at a time."""

    def __init__(self, session: StreamSession, chain: _Chain, state: bytes | None) -> None:
        self._session = session
        self._chain = chain
        self._finished = False
        if state is not None:
            self._restore(state)

    @property
    def taken(self) -> int:
        """Latent frames that were pushed."""
        return self._chain.stages[0].taken

    def push(self, latents: np.ndarray, first: int | None = None) -> list[np.ndarray]:
        """Decode the next latents.

        Args:
            latents: (1, C, T', H', W').
            first: place in the clip of the first of them, for who wants the order checked.

        Returns:
            Frames (1, 3, t, H, W) that are final by now, as `StreamSession.stream` gives them.

        Raises RuntimeFailure for latents of another shape or out of order, and for a clip that was finished.
        """
        if first is not None and first != self.taken:
            raise RuntimeFailure(
                f"Latent frame {first} was pushed where frame {self.taken} of the clip is next. Push every latent "
                "frame once, in order; begin another clip for another one."
            )
        self._refuse_if_finished()
        pieces = self._chain.push(self._session._frames_first(latents))
        return [self._session._frames(piece) for piece in pieces]

    def finish(self) -> list[np.ndarray]:
        """End the clip and give its last frames."""
        self._refuse_if_finished()
        if not self.taken:
            raise RuntimeFailure("No latents were pushed: there is nothing to finish.")
        self._finished = True
        return [self._session._frames(piece) for piece in self._chain.finish()]

    def save(self) -> bytes:
        """All that the clip needs to go on, in another process too: safetensors."""
        from safetensors.numpy import save

        self._refuse_if_finished()
        places = [[stage.calls, stage.filled] for stage in self._chain.stages]
        return save(self._tensors(), {"identity": self._session.artifact.sha256, "places": json.dumps(places)})

    def _tensors(self) -> Arrays:
        return {
            f"{stage.segment.program}.{name}": array
            for stage in self._chain.stages
            for name, array in (("x", stage.x), *((f"state_{i}", state) for i, state in enumerate(stage.states)))
        }

    def _restore(self, state: bytes) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(state)
            header = json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])["__metadata__"]
            identity, places = header["identity"], json.loads(header["places"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise RuntimeFailure(f"The state is none that Clip.save made: {error!r}.") from error
        own_identity = self._session.artifact.sha256
        if identity != own_identity:
            raise RuntimeFailure(
                f"The state is of another artefact ({identity}; this one is {own_identity}): go on with the "
                "artefact that it was saved from."
            )
        own = self._tensors()
        wrong = sorted(own.keys() ^ tensors.keys())
        wrong += [
            f"{name} {array.dtype} {array.shape}"
            for name, array in tensors.items()
            if name in own and (array.dtype, array.shape) != (own[name].dtype, own[name].shape)
        ]
        stages = self._chain.stages
        if wrong or not _are_places(places, [stage.segment for stage in stages]):
            raise RuntimeFailure(f"The state was altered: {', '.join(wrong) or places}. Begin the clip again.")
        for name, array in tensors.items():
            own[name][...] = array
        for stage, (calls, filled) in zip(stages, places):
            stage.calls, stage.filled = calls, filled

    def _refuse_if_finished(self) -> None:
        if self._finished:
            raise RuntimeFailure("The clip is finished. Begin another one.")


# Rows `row` to `row + rows` of all frames of a clip: (t, C, rows, W) each.
_Read = Callable[[int, int], Iterator[np.ndarray]]


def _once(arriving: Iterable[np.ndarray]) -> _Read:
    return lambda row, rows: (frames[:, :, row : row + rows] for frames in arriving)


def _again(frames: Sequence[np.ndarray]) -> _Read:
    return lambda row, rows: (part[:, :, row : row + rows] for part in frames)


def _at_least_one(arriving: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    empty = True
    for frames in arriving:
        empty = False
        yield frames
    if empty:
        raise RuntimeFailure("No latents to decode: one frame or more are needed.")


def _are_places(places: Any, segments: Sequence[Segment]) -> bool:
    """Whether they are [calls, filled] of each segment's stage."""
    return (
        isinstance(places, list)
        and len(places) == len(segments)
        and all(
            isinstance(place, list)
            and len(place) == 2
            and all(isinstance(number, int) for number in place)
            and place[0] >= 0
            and (0 if place[0] else segment.lead) <= place[1] < segment.chunk
            for place, segment in zip(places, segments)
        )
    )
