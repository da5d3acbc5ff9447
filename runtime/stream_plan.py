"""The plan of a streamed decoder: its programs, and which frames each program has in which call.

A streamed decoder is a chain of **segments**. Each segment is one program of fixed shapes, and each call takes the
next frames of the segment's input. Inside a segment the frames are delayed, because a convolution over time looks
ahead: its output for a frame needs later frames. So the first frames that a segment gives may lie before the clip,
and the last ones after it. A runner drops those.

At the borders of the clip a convolution reads the first or the last frame again (replicated borders). A 0/1 matrix
in front of the convolution selects the frames that it reads. This file computes both, from whole numbers: which
frames to drop, and the matrices. `docs/streaming.md` has the protocol, for runners in other languages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import parsing


@dataclass(frozen=True)
class Timeline:
    """Where the frames stand at one place inside a segment, compared with the segment's input.

    Attributes:
        rate: frames here per frame of the input.
        delay: frames here that come before the clip's first frame. The segment's `lead` is part of it; at the
            input, x, the delay is the lead.
        dropped: a clip of T input frames has T * rate - dropped frames here.
    """

    rate: int = 1
    delay: int = 0
    dropped: int = 0

    def first(self, call: int, chunk: int) -> int:
        """Index in the clip of the first frame of a call; negative before the clip."""
        return call * chunk * self.rate - self.delay

    def length(self, frames: int) -> int:
        """Frames of a clip that has `frames` frames at the segment's input."""
        return frames * self.rate - self.dropped

    def then(self, more: Timeline) -> Timeline:
        """Both in a row: `more` describes a part of the segment whose input is at this place."""
        rate, delay, dropped = more.rate, more.delay, more.dropped
        return Timeline(self.rate * rate, self.delay * rate + delay, self.dropped * rate + dropped)


@dataclass(frozen=True)
class TimeConv:
    """A convolution over time.

    Attributes:
        kernel: its taps in time.
        at: where the frames that it reads stand.
    """

    kernel: int
    at: Timeline


@dataclass(frozen=True)
class Segment:
    """One program. Tensors are frames-first, (frames, channels, height, width).

    Inputs, in order: `x`, `select_0` ..., `state_0` ...; outputs: `y`, `new_state_0` ...; one select and one state
    for each of `convs`. A state holds the last frames that the convolution has read. A select is (1, m, m), where m
    is the number of frames of state and new input together.

    Attributes:
        program: file or folder, relative to the artefact.
        units: the modules of the model that it is made of.
        input, output: shapes of x and y.
        lead: frames in the first call's x before the clip's first frame; they may have any finite value. A causal
            decoder drops frames at the start of a clip. With as many frames put in front, each call gives frames,
            and no segment waits for the next latent. A negative lead means that the first frames of the clip, as
            many, are put into the first call's `state_0` (as its last frames) and x begins after them. Then no call
            is spent on the frames that the first convolution looks ahead.
        convs: in the order of the selects and states.
        states: shapes; `kernel - 1` frames each.
        end: where the frames of y stand.
        halo: rows of y, at an edge of the window, that are wrong because the rows beyond were missing. At an edge
            of the frame none is.
    """

    program: str
    units: tuple[str, ...]
    input: tuple[int, ...]
    output: tuple[int, ...]
    lead: int
    convs: tuple[TimeConv, ...]
    states: tuple[tuple[int, ...], ...]
    end: Timeline
    halo: int

    @property
    def chunk(self) -> int:
        """Input frames of a call."""
        return self.input[0]

    @property
    def scale(self) -> int:
        """Rows of the output per row of the input."""
        return self.output[2] // self.input[2]

    @property
    def select_shapes(self) -> tuple[tuple[int, ...], ...]:
        sizes = [conv.kernel - 1 + self.chunk * conv.at.rate for conv in self.convs]
        return tuple((1, m, m) for m in sizes)

    @property
    def input_names(self) -> tuple[str, ...]:
        indices = range(len(self.convs))
        return ("x", *(f"select_{i}" for i in indices), *(f"state_{i}" for i in indices))

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("y", *(f"new_state_{i}" for i in range(len(self.convs))))

    def calls(self, frames: int) -> int:
        """How many calls give all frames of a clip of `frames` input frames."""
        return -(-(self.end.length(frames) + self.end.delay) // self.output[0])

    def valid(self, call: int, frames: int | None) -> range:
        """Which frames of a call's y belong to the clip.

        Args:
            frames: of the clip at the input; None while its end is not known.
        """
        first = self.end.first(call, self.chunk)
        stop = self.output[0] if frames is None else min(self.output[0], self.end.length(frames) - first)
        start = max(0, -first)
        return range(start, max(start, stop))

    def selects(self, call: int, frames: int | None) -> list[np.ndarray]:
        """The 0/1 matrices of a call, fp32: row p of `select @ frames` is what the convolution reads as frame p.

        Args:
            frames: as for `valid`; may be None as long as all of the call's x belong to the clip.
        """
        return [
            one_hot(sources(conv, self.chunk, call, frames), shape[1])
            for conv, shape in zip(self.convs, self.select_shapes)
        ]


def sources(conv: TimeConv, chunk: int, call: int, frames: int | None) -> list[int]:
    """For each row of a convolution's select, the column with the one: an index into state and new input together.

    A frame outside the clip is replaced by the clip's first or last frame. Where that frame is not at hand, the row
    serves only outputs outside the clip, and its column does not matter.
    """
    first = conv.at.first(call, chunk) - (conv.kernel - 1)
    rows = conv.kernel - 1 + chunk * conv.at.rate
    last = math.inf if frames is None else conv.at.length(frames) - 1
    wanted = (min(max(first + p, 0), last) for p in range(rows))
    return [int(min(max(source - first, 0), rows - 1)) for source in wanted]


def one_hot(columns: list[int], width: int) -> np.ndarray:
    """(1, rows, width) fp32 with a one per row."""
    return np.eye(width, dtype=np.float32)[None, columns]


@dataclass(frozen=True)
class Strip:
    """A band of rows of the frame. All frames of the clip are decoded for one strip before the next strip begins.

    Each segment computes a window: the strip's rows and the halo around them.

    Attributes:
        starts: first row of each segment's window, in rows of that segment's input.
        first_row, rows: the rows that the strip gives, in rows of the pass's output.
    """

    starts: tuple[int, ...]
    first_row: int
    rows: int


@dataclass(frozen=True)
class Pass:
    """Segments that run together: some frames go through all of them before the next frames are read.

    The output of a pass goes to a spool, a temporary file of its frames, if another pass follows or if the pass has
    several strips.
    """

    segments: tuple[Segment, ...]
    strips: tuple[Strip, ...]

    @property
    def output(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames that it makes."""
        _, channels, _, width = self.segments[-1].output
        return channels, sum(strip.rows for strip in self.strips), width

    def length(self, frames: int) -> int:
        """Frames that come out for `frames` frames in."""
        for segment in self.segments:
            frames = segment.end.length(frames)
        return frames


@dataclass(frozen=True)
class StreamPlan:
    """How a streamed artefact is run: passes one after the other."""

    passes: tuple[Pass, ...]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Of all passes."""
        return tuple(segment for part in self.passes for segment in part.segments)

    def length(self, frames: int) -> int:
        """Frames that a clip of `frames` latent frames has."""
        for part in self.passes:
            frames = part.length(frames)
        return frames

    def faults(self, latents: tuple[int, ...], frames: tuple[int, ...]) -> list[str]:
        """What is wrong with it, for latents (C, H', W') and frames (C, H, W)."""
        faults = [
            f"passes: program {name!r} is used twice"
            for name in sorted({s.program for s in self.segments})
            if [s.program for s in self.segments].count(name) > 1
        ]
        shape = latents
        for index, part in enumerate(self.passes):
            where = f"passes[{index}]"
            found = _pass_faults(part, shape)
            faults += [f"{where}.{fault}" for fault in found]
            if found:
                return faults
            shape = part.output
        if shape != frames:
            faults.append(f"passes: they make frames of {shape}, the bundle has {frames}")
        return faults


def _pass_faults(part: Pass, shape: tuple[int, ...]) -> list[str]:
    """Faults of a pass that reads frames of `shape`, (C, H, W)."""
    faults = []
    channels, height, width = shape
    heights = [height]
    for index, segment in enumerate(part.segments):
        where = f"segments[{index}]"
        if fault := _segment_fault(segment):
            return [f"{where}: {fault}"]
        if (segment.input[1], segment.input[3]) != (channels, width) or segment.input[2] > heights[-1]:
            return [f"{where}.input: {segment.input} does not take frames of {(channels, heights[-1], width)}"]
        _, channels, _, width = segment.output
        heights.append(heights[-1] * segment.scale)
    row = 0
    for index, strip in enumerate(part.strips):
        if fault := _strip_fault(part.segments, strip, heights):
            faults.append(f"strips[{index}]: {fault}")
        if strip.first_row != row:
            faults.append(f"strips[{index}].first_row: {strip.first_row}, the strip before ends at {row}")
        row = strip.first_row + strip.rows
    if row != heights[-1]:
        faults.append(f"strips: they cover {row} rows of {heights[-1]}")
    return faults


def _segment_fault(segment: Segment) -> str:
    """What of a segment contradicts itself; empty if nothing does."""
    if len(segment.input) != 4 or len(segment.output) != 4:
        return f"shapes {segment.input} and {segment.output}: 4 dimensions are needed"
    if segment.output[0] != segment.chunk * segment.end.rate:
        return f"{segment.chunk} frames at rate {segment.end.rate} are not the {segment.output[0]} of the output"
    if segment.output[2] % segment.input[2] or segment.output[3] != segment.input[3] * segment.scale:
        return f"height and width do not grow alike from {segment.input} to {segment.output}"
    if [state[0] for state in segment.states] != [conv.kernel - 1 for conv in segment.convs]:
        return "the states do not have kernel - 1 frames, one for each convolution"
    return _lead_fault(segment)


def _lead_fault(segment: Segment) -> str:
    lead, convs = segment.lead, segment.convs
    if lead >= segment.chunk:
        return f"a lead of {lead} frames leaves none of {segment.chunk} for the clip"
    if lead < 0:
        kept = segment.states[0] if convs and convs[0].at == Timeline(delay=lead) else (0,)
        if kept[1:] != segment.input[1:] or kept[0] < -lead:
            return f"a lead of {lead} frames, and no first convolution that keeps as many frames of x"
        convs = convs[1:]
    early = min(segment.end.delay, *(conv.at.delay for conv in convs), 0)
    return f"a delay of {early} frames: only what reads x may be early, by a lead" if early else ""


def _strip_fault(segments: tuple[Segment, ...], strip: Strip, heights: list[int]) -> str:
    """Why a strip's windows do not give its rows; empty if they do."""
    if len(strip.starts) != len(segments):
        return f"{len(strip.starts)} starts for {len(segments)} segments"
    wanted = [(start, start + s.input[2]) for start, s in zip(strip.starts, segments)]
    wanted.append((strip.first_row, strip.first_row + strip.rows))
    if wanted[0][1] > heights[0]:
        return f"the first window ends at row {wanted[0][1]} of {heights[0]}"
    for index, segment in enumerate(segments):
        top, bottom = (row * segment.scale for row in wanted[index])
        top += segment.halo if top else 0
        bottom -= segment.halo if bottom < heights[index + 1] else 0
        first, stop = wanted[index + 1]
        if first < top or stop > bottom:
            return f"rows {first} to {stop} are needed of segment {index}, which gives {top} to {bottom}"
    return ""


# Small enough that readers in other languages multiply any two of them in 64 bits.
_count = partial(parsing.integer, most=2**31 - 1)
_signed = _count(1 - 2**31)
_TIMELINE = parsing.record(Timeline, {"rate": _count(1), "delay": _signed, "dropped": _count(0)})
_SHAPE = parsing.sequence(_count(1), least=1)
_SEGMENT = parsing.record(
    Segment,
    {
        "program": parsing.relative_path,
        "units": parsing.sequence(parsing.text(), least=1),
        "input": _SHAPE,
        "output": _SHAPE,
        "lead": _signed,
        "convs": parsing.sequence(parsing.record(TimeConv, {"kernel": _count(2), "at": _TIMELINE})),
        "states": parsing.sequence(_SHAPE),
        "end": _TIMELINE,
        "halo": _count(0),
    },
)
_STRIP = parsing.record(
    Strip,
    {
        "starts": parsing.sequence(_count(0), least=1),
        "first_row": _count(0),
        "rows": _count(1),
    },
)
_PASS = parsing.record(
    Pass, {"segments": parsing.sequence(_SEGMENT, least=1), "strips": parsing.sequence(_STRIP, least=1)}
)
_PLAN = parsing.record(StreamPlan, {"passes": parsing.sequence(_PASS, least=1)})


def parse_plan(value: Any, where: str, faults: list[str]) -> Any:
    """A `parsing.Check` for a plan in JSON."""
    return _PLAN(value, where, faults)
