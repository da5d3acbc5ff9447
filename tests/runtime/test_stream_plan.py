"""The plan's arithmetic against clips of single numbers, whose layers are computed whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handheld.runtime.stream_plan import Pass, Segment, StreamPlan, Strip, TimeConv, Timeline, parse_plan


@dataclass(frozen=True)
class Layer:
    """A convolution of `kernel` taps that looks `after` frames ahead, then `rate` frames for each, some dropped."""

    kernel: int
    after: int
    rate: int
    drop: int

    def taps(self) -> np.ndarray:
        return np.random.default_rng(self.kernel).standard_normal(self.kernel)

    def interleave(self, x: np.ndarray) -> np.ndarray:
        return (x[:, None] + 100.0 * np.arange(self.rate)).reshape(-1)

    def whole(self, clip: np.ndarray) -> np.ndarray:
        before = self.kernel - 1 - self.after
        padded = np.concatenate([clip[:1].repeat(before), clip, clip[-1:].repeat(self.after)])
        return self.interleave(np.convolve(padded, self.taps()[::-1], "valid"))[self.drop :]


@st.composite
def layers(draw: Callable) -> Layer:
    kernel = draw(st.sampled_from([2, 3, 5]))
    rate = draw(st.integers(1, 3))
    return Layer(kernel, draw(st.integers(0, kernel - 1)), rate, draw(st.sampled_from([0, rate - 1])))


def segment_of(chain: list[Layer], chunk: int, lead: int = 0) -> Segment:
    at = Timeline(delay=lead)
    convs = []
    for layer in chain:
        convs.append(TimeConv(layer.kernel, at))
        delay = at.delay + layer.after
        dropped = at.dropped * layer.rate + layer.drop
        at = Timeline(at.rate * layer.rate, delay * layer.rate + layer.drop, dropped)
    states = tuple((conv.kernel - 1, 1, 1, 1) for conv in convs)
    shape = (1, 1, 1)
    return Segment("p", ("u",), (chunk, *shape), (chunk * at.rate, *shape), lead, tuple(convs), states, at, 0)


def stream(segment: Segment, chain: list[Layer], clip: np.ndarray, *, live: bool) -> np.ndarray:
    """As a runner has it; `live`: the end of the clip is not known as long as there are frames for a call."""
    n, lead = segment.chunk, segment.lead
    states = [np.full(conv.kernel - 1, 1e6) for conv in segment.convs]  # garbage before the clip
    out = []
    for call in range(segment.calls(len(clip))):
        known = None if live and (call + 1) * n - lead <= len(clip) else len(clip)
        x = clip[np.clip(np.arange(call * n, (call + 1) * n) - lead, 0, len(clip) - 1)]
        if call == 0 and lead > 0:
            x[:lead] = 1e6
        if call == 0 and lead < 0:
            states[0][lead:] = clip[np.clip(np.arange(-lead), 0, len(clip) - 1)]
        for i, (layer, select) in enumerate(zip(chain, segment.selects(call, known))):
            extended = np.concatenate([states[i], x])
            states[i] = extended[len(extended) - layer.kernel + 1 :]
            x = layer.interleave(np.convolve(select[0] @ extended, layer.taps()[::-1], "valid"))
        out.append(x[segment.valid(call, known)])
        if live and known is None:
            assert list(segment.valid(call, known)) == list(segment.valid(call, len(clip)))
    return np.concatenate(out)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(layers(), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 9), st.booleans())
def test_streamed_layers_are_those_of_the_whole_clip(
    data: st.DataObject, chain: list[Layer], chunk: int, frames: int, live: bool
) -> None:
    clip = np.random.default_rng(0).standard_normal(frames)
    whole = clip
    for layer in chain:
        whole = layer.whole(whole)
    segment = segment_of(chain, chunk, data.draw(st.integers(-chain[0].after, chunk - 1)))
    assert segment.end.length(frames) == len(whole)
    np.testing.assert_allclose(stream(segment, chain, clip, live=live), whole, rtol=0, atol=1e-9)


@given(st.lists(layers(), min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 9))
def test_there_is_no_call_without_need(chain: list[Layer], chunk: int, frames: int) -> None:
    segment = segment_of(chain, chunk)
    valid = [segment.valid(call, frames) for call in range(segment.calls(frames) + 1)]
    assert sum(map(len, valid)) == segment.end.length(frames)
    assert len(valid[-2]) > 0
    assert len(valid[-1]) == 0


@given(layers(), st.integers(1, 5), st.integers(0, 9), st.integers(1, 9) | st.none())
def test_every_row_of_a_select_takes_one_frame(layer: Layer, chunk: int, call: int, frames: int | None) -> None:
    segment = segment_of([layer], chunk)
    (select,) = segment.selects(call, frames)
    assert select.shape == segment.select_shapes[0]
    assert select.dtype == np.float32
    assert (np.sort(select, axis=2)[..., :-1] == 0).all()
    assert (select.sum(axis=2) == 1).all()


def plan() -> StreamPlan:
    """Latents (4, 6, 8): a head on the whole frame, then two strips of a tail that doubles the frame."""
    head = Segment("head", ("conv_in",), (2, 4, 6, 8), (2, 5, 6, 8), 0, (), (), Timeline(), 1)
    conv = TimeConv(3, Timeline())
    tail = Segment("tail", ("up",), (2, 5, 4, 8), (4, 3, 8, 16), 0, (conv,), ((2, 5, 4, 8),), Timeline(2, 3, 1), 2)
    strips = (Strip((0,), 0, 6), Strip((2,), 6, 6))
    return StreamPlan((Pass((head,), (Strip((0,), 0, 6),)), Pass((tail,), strips)))


def test_a_plan_reads_back_and_is_sound() -> None:
    faults: list[str] = []
    assert parse_plan(json.loads(json.dumps(asdict(plan()))), "stream", faults) == plan()
    assert faults == []
    assert plan().faults((4, 6, 8), (3, 12, 16)) == []
    assert plan().length(3) == 5
    assert plan().passes[1].output == (3, 12, 16)
    assert plan().segments[1].select_shapes == ((1, 4, 4),)


def changed(pass_index: int, **change: object) -> StreamPlan:
    """The plan with other fields in one pass; a segment's go to its only segment."""
    part = plan().passes[pass_index]
    if "strips" not in change:
        change = {"segments": (replace(part.segments[0], **change),)}
    passes = list(plan().passes)
    passes[pass_index] = replace(part, **change)
    return StreamPlan(tuple(passes))


def early(lead: int, **change: object) -> StreamPlan:
    """The plan with the clip's first frames in the state of the tail's convolution."""
    conv = TimeConv(3, Timeline(delay=lead))
    return changed(1, **{"lead": lead, "convs": (conv,), "end": Timeline(2, 3 + 2 * lead, 1)} | change)


def test_a_plan_may_put_the_first_frames_into_the_state() -> None:
    for lead in (0, -1):
        assert early(lead).faults((4, 6, 8), (3, 12, 16)) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (changed(0, program="tail"), "program 'tail' is used twice"),
        (
            changed(0, input=(2, 9, 6, 8)),
            "passes[0].segments[0].input: (2, 9, 6, 8) does not take frames of (4, 6, 8)",
        ),
        (changed(0, output=(3, 5, 6, 8)), "2 frames at rate 1 are not the 3 of the output"),
        (changed(0, lead=2), "a lead of 2 frames leaves none of 2"),
        (changed(0, lead=-1), "a lead of -1 frames, and no first convolution that keeps as many frames of x"),
        (changed(1, lead=-1), "a lead of -1 frames, and no first convolution that keeps as many frames of x"),
        (early(-1, states=((2, 4, 4, 8),)), "a lead of -1 frames, and no first convolution that keeps"),
        (early(-3), "a lead of -3 frames, and no first convolution that keeps"),
        (changed(1, convs=(TimeConv(3, Timeline(delay=-1)),)), "a delay of -1 frames: only what reads x may"),
        (early(-1, end=Timeline(2, -1, 1)), "a delay of -1 frames: only what reads x may"),
        (changed(0, output=(2, 5, 12, 8)), "height and width do not grow alike"),
        (changed(0, input=(2, 4, 6)), "4 dimensions are needed"),
        (changed(1, states=((1, 5, 4, 8),)), "do not have kernel - 1 frames"),
        (changed(1, halo=3), "passes[1].strips[0]: rows 0 to 6 are needed of segment 0, which gives 0 to 5"),
        (changed(1, strips=(Strip((0,), 0, 8),)), "passes[1].strips[0]: rows 0 to 8 are needed"),
        (changed(1, strips=(Strip((0,), 0, 6), Strip((3,), 6, 6))), "the first window ends at row 7 of 6"),
        (changed(1, strips=(Strip((0,), 0, 6), Strip((2,), 7, 5))), "7, the strip before ends at 6"),
        (changed(1, strips=(Strip((0,), 0, 6),)), "they cover 6 rows of 12"),
        (changed(1, strips=(Strip((0, 0), 0, 6),)), "2 starts for 1 segments"),
        (changed(1, output=(4, 4, 8, 16)), "they make frames of (4, 12, 16), the bundle has (3, 12, 16)"),
    ],
)
def test_a_plan_that_contradicts_itself_is_told_where(wrong: StreamPlan, says: str) -> None:
    assert says in "; ".join(wrong.faults((4, 6, 8), (3, 12, 16)))


def test_a_plan_of_other_fields_is_told_which() -> None:
    tree = json.loads(json.dumps(asdict(plan())))
    tree["passes"][0]["segments"][0]["program"] = "../head"
    tree["passes"][1]["segments"][0]["convs"][0]["kernel"] = 1
    del tree["passes"][1]["strips"][0]["rows"]
    faults: list[str] = []
    parse_plan(tree, "stream", faults)
    assert [fault.split(":")[0] for fault in faults] == [
        "stream.passes[0].segments[0].program",
        "stream.passes[1].segments[0].convs[0].kernel",
        "stream.passes[1].strips[0].rows",
    ]
