"""The driver of streamed artefacts on a small program: pieces, saved clips, what is refused, what is released."""

from __future__ import annotations

import math
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from handheld.runtime import streaming
from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.manifest import Artifact, Method, TensorSpec, Tolerance
from handheld.runtime.spool import Spool
from handheld.runtime.stream_plan import Pass, Segment, StreamPlan, Strip, TimeConv, Timeline
from handheld.runtime.streaming import StreamSession

CHANNELS, HEIGHT, WIDTH = 2, 4, 3
FRAME = (CHANNELS, HEIGHT, WIDTH)
TAPS = (0.5, 2.0, -1.0)


class Filter:
    """A convolution of three taps over time, alike at every place."""

    threads = 1
    loaded = 0

    def __init__(self) -> None:
        Filter.loaded += 1

    def call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        x, select, state = inputs
        extended = np.concatenate([state, x])
        window = np.einsum("pm,mchw->pchw", select[0], extended)
        outputs[0][...] = sum(tap * window[i : i + len(x)] for i, tap in enumerate(TAPS))
        outputs[1][...] = extended[-2:]
        return outputs

    def close(self) -> None:
        Filter.loaded -= 1


def segment(name: str, chunk: int, rows: int = HEIGHT, lead: int = 0) -> Segment:
    shape = (CHANNELS, rows, WIDTH)
    conv, end = TimeConv(3, Timeline(delay=lead)), Timeline(delay=lead + 1)
    return Segment(name, ("filter",), (chunk, *shape), (chunk, *shape), lead, (conv,), ((2, *shape),), end, 0)


WHOLE = (Strip((0, 0), 0, HEIGHT),)
ONE_PASS = StreamPlan((Pass((segment("a", 2), segment("b", 3)), WHOLE),))
EARLY = StreamPlan((Pass((segment("a", 2, lead=-1), segment("b", 3, lead=-1)), WHOLE),))
STRIPS = (Strip((0,), 0, 3), Strip((1,), 3, 1))
PASSES = StreamPlan((Pass((segment("a", 2, 3),), STRIPS), Pass((segment("b", 4, 3, -1),), STRIPS)))
SPOOLED = StreamPlan((Pass((segment("a", 2),), (Strip((0,), 0, HEIGHT),)), Pass((segment("b", 1),), WHOLE[:1])))
SPOOLED = StreamPlan((SPOOLED.passes[0], Pass((segment("b", 1),), (Strip((0,), 0, HEIGHT),))))


def session(plan: StreamPlan = ONE_PASS, identity: str = "1" * 64) -> StreamSession:
    assert plan.faults(FRAME, FRAME) == []
    shape = (1, CHANNELS, 5, HEIGHT, WIDTH)
    artifact = Artifact(
        *("test", "test", "test", "stream", "fp32", identity, 0, Tolerance(1e-5, "fp32")),
        methods=(Method("forward", (shape,), (shape,)),),
        stream=plan,
    )
    specs = [TensorSpec("latents", shape)], [TensorSpec("frames", shape)]
    return StreamSession(plan, lambda segment: Filter(), artifact, *specs)


def latents(frames: int) -> np.ndarray:
    generator = np.random.default_rng(frames)
    return generator.standard_normal((1, CHANNELS, frames, HEIGHT, WIDTH), dtype=np.float32)


def filtered(clip: np.ndarray) -> np.ndarray:
    for _ in range(2):
        padded = np.concatenate([clip[:, :, :1], clip, clip[:, :, -1:]], axis=2)
        clip = sum(tap * padded[:, :, i : i + clip.shape[2]] for i, tap in enumerate(TAPS))
    return clip


@pytest.mark.parametrize("plan", [ONE_PASS, EARLY, PASSES, SPOOLED])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_frames_are_those_of_the_whole_clip(plan: StreamPlan, frames: int) -> None:
    clip = latents(frames)
    with session(plan) as opened:
        for _ in range(2):  # a session decodes clip after clip
            np.testing.assert_allclose(opened.run({"latents": clip})["frames"], filtered(clip), atol=1e-5)
            pieces = [*opened.stream(iter(np.split(clip, frames, axis=2)))]
            np.testing.assert_allclose(np.concatenate(pieces, axis=2), filtered(clip), atol=1e-5)
    assert Filter.loaded == 0


def test_frames_come_before_the_latents_end() -> None:
    asked = 0

    def camera() -> Iterator[np.ndarray]:
        nonlocal asked
        for latent in np.split(latents(20), 20, axis=2):
            asked += 1
            yield latent

    with session() as opened:
        next(opened.stream(camera()))
    assert asked == 4  # two calls of two frames give the three that the second segment needs


def test_programs_of_one_pass_stay_and_those_of_several_take_turns() -> None:
    with session(ONE_PASS) as opened:
        assert Filter.loaded == 2
        next(opened.stream(latents(9)))
        assert Filter.loaded == 2
    with session(SPOOLED) as opened:
        assert Filter.loaded == 0
        stream = opened.stream(latents(9))
        next(stream)
        assert Filter.loaded == 1
        stream.close()  # as a caller does that stops early
        assert Filter.loaded == 0


def test_a_program_that_does_not_load_releases_the_others() -> None:
    calls = 0

    def load(segment: Segment) -> Filter:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeFailure("no memory")
        return Filter()

    with session() as opened:
        artifact, inputs, outputs = opened.artifact, opened.inputs, opened.outputs
    with pytest.raises(RuntimeFailure, match="no memory"):
        StreamSession(ONE_PASS, load, artifact, inputs, outputs)
    assert Filter.loaded == 0


def test_a_strips_buffers_are_gone_before_the_next_strip_takes_its_own(monkeypatch) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    make = streaming._Stage.__init__

    def watched(stage: streaming._Stage, *args: object) -> None:
        assert [ref for ref in made if ref() is not None] == []  # passes of one segment: a stage for each strip
        make(stage, *args)
        made.extend(weakref.ref(array) for array in (stage.x, stage._y, *stage.states))

    monkeypatch.setattr(streaming._Stage, "__init__", watched)
    with session(PASSES) as opened:
        assert len(list(opened.stream(latents(9)))) == 9
    assert len(made) == 4 * 3


def test_temporary_files_go_when_the_pass_that_reads_them_ends(monkeypatch) -> None:
    there: list[int] = []

    class Watched(Spool):
        now = 0

        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            Watched.now += 1
            there.append(Watched.now)

        def close(self) -> None:
            Watched.now -= not self._file.closed
            super().close()

    monkeypatch.setattr(streaming, "Spool", Watched)
    passes = [Pass((segment(name, 2),), (Strip((0,), 0, HEIGHT),)) for name in "acde"]
    with session(StreamPlan((*passes, PASSES.passes[-1]))) as opened:
        assert len(list(opened.stream(latents(3)))) == 3
    assert there == [1, 2, 2, 2, 2]
    assert Watched.now == 0


def test_the_end_of_a_clip_takes_no_second_buffer(monkeypatch) -> None:
    frame = (8, 64, 64)
    large = replace(segment("a", 16), input=(16, *frame), output=(16, *frame), states=((2, *frame),))
    stage = streaming._Stage(large, Filter(), np.empty(math.prod(large.states[0]), np.float32))
    stage.calls = 1  # all frames are in: what is left is a call that is all padding

    def called(stage: streaming._Stage, total: int) -> Iterator[np.ndarray]:
        stage.calls += 1
        return iter(())

    monkeypatch.setattr(streaming._Stage, "_call", called)
    tracemalloc.start()
    assert list(stage.finish()) == []
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stage.calls == 2
    assert most_bytes < stage.x.nbytes / 4


def test_what_is_yielded_is_the_callers() -> None:
    clip = latents(7)
    with session() as opened:
        pieces = []
        for frames in opened.stream(clip):
            pieces.append(frames.copy())
            frames.fill(np.nan)
    np.testing.assert_allclose(np.concatenate(pieces, axis=2), filtered(clip), atol=1e-5)


def test_the_first_frames_may_go_into_the_state_and_save_a_call() -> None:
    calls = [sum(s.calls(n) for s in plan.segments) for plan in (ONE_PASS, EARLY) for n in (2, 6)]
    assert calls == [3, 7, 2, 5]


@pytest.mark.parametrize("plan", [ONE_PASS, EARLY])
@pytest.mark.parametrize("frames", range(8))
def test_a_saved_clip_goes_on_in_another_session(plan: StreamPlan, frames: int) -> None:
    clip = latents(8)
    with session(plan) as first:
        begun = first.clip()
        pieces = begun.push(clip[:, :, :frames], first=0) if frames else []
        state = begun.save()
    with session(plan) as second:
        resumed = second.clip(state)
        assert resumed.taken == frames
        pieces += resumed.push(clip[:, :, frames:], first=frames)
        pieces += resumed.finish()
    np.testing.assert_allclose(np.concatenate(pieces, axis=2), filtered(clip), atol=1e-5)


def test_two_clips_share_a_session() -> None:
    one, other = latents(5), latents(6)
    with session() as opened:
        clips = [(opened.clip(), one, []), (opened.clip(), other, [])]
        for index in range(6):
            for clip, source, pieces in clips:
                if index < source.shape[2]:
                    pieces += clip.push(source[:, :, index : index + 1])
        for clip, source, pieces in clips:
            pieces += clip.finish()
            np.testing.assert_allclose(np.concatenate(pieces, axis=2), filtered(source), atol=1e-5)


@pytest.mark.parametrize("first", [0, 3, 1])
def test_latents_out_of_order_are_refused(first: int) -> None:
    with session() as opened:
        clip = opened.clip()
        clip.push(latents(2), first=0)
        with pytest.raises(RuntimeFailure, match=f"frame {first} was pushed where frame 2 of the clip is next"):
            clip.push(latents(1), first=first)


def test_a_finished_clip_is_over() -> None:
    with session() as opened:
        clip = opened.clip()
        with pytest.raises(RuntimeFailure, match="nothing to finish"):
            clip.finish()
        clip.push(latents(1))
        clip.finish()
        for action in (lambda: clip.push(latents(1)), clip.finish, clip.save):
            with pytest.raises(RuntimeFailure, match="The clip is finished"):
                action()


def saved(identity: str = "1" * 64) -> bytes:
    with session(identity=identity) as opened:
        clip = opened.clip()
        clip.push(latents(3))
        return clip.save()


def remade(change: Callable[[dict[str, np.ndarray]], None], places: str = "[[1, 1], [0, 1]]") -> bytes:
    from safetensors.numpy import load, save

    tensors = load(saved())
    change(tensors)
    return save(tensors, {"identity": "1" * 64, "places": places})


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (lambda: saved("2" * 64), f"of another artefact \\({'2' * 64}; this one is {'1' * 64}\\)"),
        (lambda: b"", "none that Clip.save made"),
        (lambda: saved()[:-1], "none that Clip.save made"),
        (lambda: remade(lambda t: t.pop("b.state_0")), "altered: b.state_0"),
        (lambda: remade(lambda t: t.update(more=t["a.x"])), "altered: more"),
        (lambda: remade(lambda t: t.update({"a.x": t["a.x"][:1]})), r"altered: a.x float32 \(1, 2, 4, 3\)"),
        (lambda: remade(lambda t: None, "[[1, 1]]"), "altered"),
        (lambda: remade(lambda t: None, "[[1, 1], [0, 3]]"), "altered"),
        (lambda: remade(lambda t: None, "[[1, 1], [0, -1]]"), "altered"),
        (lambda: remade(lambda t: None, '[[1, 1], [0, "1"]]'), "altered"),
    ],
)
def test_a_state_that_is_not_this_artefacts_is_refused(state: Callable[[], bytes], says: str) -> None:
    with session() as opened, pytest.raises(RuntimeFailure, match=says):
        opened.clip(state())


def test_a_plan_of_passes_has_no_clips_to_push_to() -> None:
    with session(PASSES) as opened, pytest.raises(RuntimeFailure, match="several passes or strips"):
        opened.clip()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (latents(2)[:, :1], r"float32 \(1, 1, 2, 4, 3\); this artefact takes .*\(1, 2, 1 or more frames, 4, 3\)"),
        (latents(2)[..., :2], r"float32 \(1, 2, 2, 4, 2\)"),
        (latents(2)[0], r"float32 \(2, 2, 4, 3\)"),
        (latents(2)[:, :, :0], r"float32 \(1, 2, 0, 4, 3\)"),
        (latents(2).astype(np.int32), "int32"),
        ([0.0], "list|float"),
        ([], "No latents to decode"),
    ],
)
def test_latents_that_do_not_fit_are_refused(wrong: object, says: str) -> None:
    with session() as opened, pytest.raises(RuntimeFailure, match=says):
        list(opened.stream(wrong))


def test_inputs_of_other_names_are_refused() -> None:
    with session() as opened, pytest.raises(RuntimeFailure, match='The inputs are z; "latents" is needed'):
        opened.run({"z": latents(1)})


def test_a_closed_session_does_not_run() -> None:
    opened = session()
    opened.close()
    with pytest.raises(RuntimeFailure, match="The session is closed"):
        opened.run({"latents": latents(1)})


def test_a_spool_gives_back_what_was_written_by_rows() -> None:
    frames = latents(5)[0].transpose(1, 0, 2, 3)
    with Spool(FRAME, np.dtype("float32")) as spool:
        spool.write(frames[:3, :, :1], 0, 0)
        spool.write(frames[3:, :, :1], 3, 0)
        spool.write(frames[:, :, 1:], 0, 1)
        assert spool.frames == 5
        np.testing.assert_array_equal(spool.read(1, 4), frames[1:4])
        np.testing.assert_array_equal(spool.read(0, 5, 2, 1), frames[:, :, 2:3])
        np.testing.assert_array_equal(np.concatenate([*spool.windows(1, 3)]), frames[:, :, 1:])
        with pytest.raises(RuntimeFailure, match="end at byte"):
            spool.read(4, 6)
