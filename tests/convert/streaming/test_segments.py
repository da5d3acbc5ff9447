"""Segments of every decoder, run in torch by the host's driver, against the whole-clip decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handheld.convert import ExportError
from handheld.convert.streaming import Cut, PassCut, SegmentModule, build, default_cuts, units_of
from handheld.models import PRESETS, TurboVAEDecoder
from handheld.models.layers import Layer, Window
from handheld.runtime.manifest import Artifact, Method, TensorSpec, Tolerance
from handheld.runtime.streaming import StreamSession

# Presets of one architecture count once.
STRUCTURES = [name for i, name in enumerate(PRESETS) if PRESETS[name] not in [*PRESETS.values()][:i]]
FORMS = [(name, causal) for name in STRUCTURES for causal in (False, True)]


def narrow(name: str, *, causal: bool = False, **change: object) -> TurboVAEDecoder:
    """A preset in small and in fp64: few channels, with its changes of width, at most two blocks per stage."""
    config = PRESETS[name]
    widths = config.decoder_block_out_channels
    ranks = sorted(set(widths))
    # The last norm keeps two channels behind a patch head: of one it would be the sign.
    narrowed = {width: 12 + 4 * rank for rank, width in enumerate(ranks)}
    narrowed[widths[0]] = 2 * max(config.patch_size, 2) ** 2
    config = replace(
        config,
        latent_channels=6,
        decoder_block_out_channels=tuple(narrowed[width] for width in widths),
        decoder_layers_per_block=tuple(min(n, 2) for n in config.decoder_layers_per_block),
        decoder_causal=causal,
        **change,
    )
    torch.manual_seed(0)
    return TurboVAEDecoder(config).double().eval()


def latents_for(model: TurboVAEDecoder, frames: int, height: int = 2, width: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(1, model.spec.channels, frames, height, width, generator=generator, dtype=torch.float64)


class TorchProgram:
    def __init__(self, module: SegmentModule) -> None:
        self.module = module

    def call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [result.numpy() for result in self.module(*map(torch.from_numpy, inputs))]

    threads = None

    def close(self) -> None: ...


def session_for(model: TurboVAEDecoder, cuts: Sequence[PassCut], height: int = 2, width: int = 1) -> StreamSession:
    plan, modules = build(model, cuts, height, width)
    programs = {module.plan.program: TorchProgram(module) for module in modules}
    latents = (1, model.spec.channels, 1, height, width)
    frames = (1, 3, model.spec.frames(1), height * model.spec.spatial, width * model.spec.spatial)
    assert plan.faults((latents[1], *latents[3:]), (frames[1], *frames[3:])) == []
    artifact = Artifact(
        *("torch", "torch", "torch", "stream", "fp64", "0" * 64, 0, Tolerance(1e-10, "fp64")),
        methods=(Method("forward", (latents,), (frames,)),),
        input_dtype="float64",
        stream=plan,
    )
    inputs, outputs = [TensorSpec("latents", latents)], [TensorSpec("frames", frames)]
    return StreamSession(plan, lambda segment: programs[segment.program], artifact, inputs, outputs)


def decode(model: TurboVAEDecoder, cuts: tuple[PassCut, ...], latents: torch.Tensor) -> np.ndarray:
    *_, height, width = latents.shape
    with session_for(model, cuts, height, width) as session:
        return session.run({"latents": latents.numpy()})["frames"]


def assert_same_function(streamed: np.ndarray, whole: torch.Tensor) -> None:
    assert streamed.shape == tuple(whole.shape)
    difference = np.abs(streamed - whole.numpy()).max(axis=(0, 1, 3, 4))
    assert difference.max() < 1e-10, f"frames differ by {difference.tolist()}"


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize(("name", "causal"), FORMS)
def test_default_cuts_give_the_frames_of_the_whole_clip(name: str, causal: bool, frames: int) -> None:
    model = narrow(name, causal=causal)
    latents = latents_for(model, frames, height=1)
    assert_same_function(decode(model, default_cuts(model, 4), latents), model.decode(latents))


@pytest.mark.parametrize(("name", "causal"), [("hunyuan", False), ("tiny", False), ("tiny", True)])
def test_passes_and_strips_give_the_frames_of_the_whole_clip(name: str, causal: bool) -> None:
    model = narrow(name, causal=causal)
    rest = len(units_of(model)) - 3
    cuts = (
        PassCut((Cut(1, 1),)),
        PassCut((Cut(1, 5), Cut(rest - rest // 2, 2)), strips=2),
        PassCut((Cut(rest // 2, 3), Cut(1, 4)), strips=3),
    )
    latents = latents_for(model, 3)
    assert_same_function(decode(model, cuts, latents), model.decode(latents))


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_cuts_of_any_clip_give_the_frames_of_the_whole_clip(data: st.DataObject) -> None:
    model = narrow("tiny", causal=data.draw(st.booleans()), is_video_dc_ae=data.draw(st.booleans()))
    frames, height = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    left = len(units_of(model))
    passes = []
    while left:
        cuts = []
        for _ in range(data.draw(st.integers(1, 3))):
            if left:
                units = data.draw(st.integers(1, left))
                cuts.append(Cut(units, data.draw(st.integers(1, 5))))
                left -= units
        passes.append(PassCut(tuple(cuts), data.draw(st.integers(1, height))))  # no more strips than rows
    latents = latents_for(model, frames, height)
    assert_same_function(decode(model, tuple(passes), latents), model.decode(latents))


@pytest.mark.parametrize("kernel", [1, 7])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_other_kernels_and_patch_heads_stream_too(kernel: int, patch_size: int) -> None:
    model = narrow("tiny", decoder_dw_kernel_size=kernel, patch_size=patch_size)
    latents = latents_for(model, 3)
    assert_same_function(decode(model, default_cuts(model, 3), latents), model.decode(latents))


def test_of_what_the_first_convolution_looks_ahead_nothing_is_computed() -> None:
    model = narrow("ltx")
    names = list(units_of(model))
    plan, _ = build(model, [PassCut(tuple(Cut(1, 4) for _ in names))], 2, 2)
    by_name = dict(zip(names, plan.segments))
    # The last unit's convolution is behind upsamplers: what it keeps is not the segment's x.
    ahead = [segment.convs[0].kernel // 2 for segment in plan.segments[:-1]]
    assert [-segment.lead for segment in plan.segments] == [*ahead, 0]
    assert by_name["conv_in"].end.delay == 0
    block = by_name["mid_block.resnets.0"]
    assert block.end.delay == block.convs[1].kernel // 2
    plan, _ = build(narrow("ltx", causal=True), default_cuts(narrow("ltx", causal=True), 5), 2, 2)
    assert min(segment.lead for segment in plan.segments) == 0


@pytest.mark.parametrize(("chunk", "least"), [(1, 4), (6, 6)])
def test_default_cuts_take_the_least_frames_or_a_few_more(chunk: int, least: int) -> None:
    (part,) = default_cuts(narrow("ltx"), 5, chunk)
    chunks = [cut.chunk for cut in part.cuts]
    assert least <= min(chunks)
    assert max(chunks) <= least + 8
    assert len(set(chunks)) > 1  # each as its own number of frames wants it


@pytest.mark.parametrize("name", ["ltx", "dc"])
@pytest.mark.parametrize("split", [False, True])
def test_a_causal_decoder_gives_the_frames_of_a_latent_before_it_asks_for_the_next(name: str, split: bool) -> None:
    model = narrow(name, causal=True)
    (part,) = default_cuts(model, 4)
    assert len(part.cuts) == 1  # nothing looks ahead: nothing is wasted
    if split:
        part = PassCut(tuple(in_step(model)))
    asked, given_out = 0, 0

    def camera() -> Iterator[np.ndarray]:
        nonlocal asked
        for latent in latents_for(model, 3).split(1, dim=2):
            assert given_out == (model.spec.frames(asked) if asked else 0)
            asked += 1
            yield latent.numpy()

    with session_for(model, [part]) as session:
        for frames in session.stream(camera()):
            given_out += frames.shape[2]
            assert given_out <= model.spec.frames(asked)
    assert (asked, given_out) == (3, model.spec.frames(3))


def in_step(model: TurboVAEDecoder) -> Iterator[Cut]:
    """A segment each unit, which takes what one call of the segment before gives."""
    chunk = 1
    for unit in units_of(model).values():
        yield Cut(1, chunk)
        chunk *= unit.timing.rate


def windows_of(layer: Layer) -> list[Window]:
    """Those with more than one tap."""
    if isinstance(layer, Window):
        return [layer] if layer.taps.count > 1 else []
    parts = (*getattr(layer, "layers", ()), *getattr(layer, "branch", ()), *getattr(layer, "shortcut", ()))
    return [window for part in parts for window in windows_of(part)]


def test_a_block_keeps_its_input_and_that_of_its_second_convolution_and_nothing_else() -> None:
    model = narrow("ltx")
    units = units_of(model)
    plan, _ = build(model, [PassCut(tuple(Cut(1, 4) for _ in units))], 2, 1)
    for segment, unit in zip(plan.segments, units.values()):
        taps = [conv.kernel for conv in segment.convs]
        assert taps == [window.taps.count for window in windows_of(unit)]
        assert [state[0] for state in segment.states] == [k - 1 for k in taps]


@pytest.mark.parametrize(
    ("cuts", "says"),
    [
        ((PassCut((Cut(3, 1),)),), "The cuts are of 3 units; this decoder has 7"),
        ((PassCut((Cut(7, 0),)),), "A chunk of 0 frames: a call takes 1 or more"),
        ((PassCut((Cut(7, 1),), strips=17),), "17 strips of a frame of 16 rows"),
    ],
)
def test_impossible_cuts_are_refused(cuts: tuple[PassCut, ...], says: str) -> None:
    with pytest.raises(ExportError, match=says):
        build(narrow("tiny"), cuts, 2, 1)


def test_a_foreign_convolution_is_refused_by_name() -> None:
    model = narrow("tiny")
    model.conv_in = torch.nn.Identity()
    with pytest.raises(ExportError, match="Cannot stream a Identity"):
        units_of(model)
