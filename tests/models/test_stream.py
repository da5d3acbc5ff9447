"""Streaming decode against the whole-clip decode: equality, liveness, bounded state, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from handheld.models import PRESETS, ModelError, TurboVAEDecoder
from handheld.models.families.turbo_vaed.blocks import Conv3d, DepthwiseSeparableConv3d
from handheld.models.streaming import ChainStage, Rows, Spool, chain_of

# Presets of one architecture count once.
STRUCTURES = [name for i, name in enumerate(PRESETS) if PRESETS[name] not in [*PRESETS.values()][:i]]
FORMS = [(name, causal) for name in STRUCTURES for causal in (False, True)]


def narrow(name: str, *, causal: bool, layers: int = 2, **change: object) -> TurboVAEDecoder:
    """A preset's structure in small: narrow, with changes of width where the preset has them, and at most `layers`
    blocks per stage.

    The last norm keeps two channels behind a patch head. With one it would be the sign function, which makes
    of a rounding difference anything up to 2.
    """
    widths = PRESETS[name].decoder_block_out_channels
    ranks = sorted(set(widths))
    narrowed = {width: 12 + 4 * rank for rank, width in enumerate(ranks)}
    narrowed[widths[0]] = 2 * max(PRESETS[name].patch_size, 2) ** 2
    config = replace(
        PRESETS[name],
        decoder_block_out_channels=tuple(narrowed[width] for width in widths),
        decoder_layers_per_block=tuple(min(n, layers) for n in PRESETS[name].decoder_layers_per_block),
        decoder_causal=causal,
        **change,
    )
    torch.manual_seed(0)
    return TurboVAEDecoder(config).eval()


def stages_of(model: TurboVAEDecoder) -> ChainStage:
    return chain_of(list(model.layers().values()))


def latents_for(model: TurboVAEDecoder, frames: int, *, batch: int = 1, height: int = 1) -> Tensor:
    width = 1 if model.spec.spatial > 16 else 2
    generator = torch.Generator().manual_seed(frames)
    latents = torch.randn(batch, model.spec.channels, frames, height, width, generator=generator)
    return latents.to(next(model.parameters()).dtype)


def joined(pieces: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(pieces), dim=2)


def assert_same_function(streamed: Tensor, whole: Tensor) -> None:
    """In fp64, where rounding is about 1e-14: what fp32 could hide behind its rounding shows here."""
    assert whole.dtype == torch.float64
    assert streamed.shape == whole.shape
    difference = (streamed - whole).abs().amax(dim=(0, 1, 3, 4))
    assert difference.max() < 1e-10, f"frames differ by {difference.tolist()}"


@pytest.mark.parametrize(("name", "causal"), FORMS)
def test_streamed_frames_equal_the_whole_clip_for_every_length_and_chunk(name: str, causal: bool) -> None:
    model = narrow(name, causal=causal).double()
    for length in range(1, 7):
        latents = latents_for(model, length)
        whole = model.decode(latents)
        assert whole.shape[2] == model.spec.frames(length)
        if length > 1:  # else frames in the wrong order would pass
            assert (whole[:, :, 1:] - whole[:, :, :-1]).abs().amax(dim=(0, 1, 3, 4)).min() > 1e-4
        for chunk in range(1, min(length, 4) + 1):
            assert_same_function(joined(model.stream(latents, chunk=chunk)), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "causal"), FORMS)
def test_streaming_adds_no_more_than_rounding(name: str, causal: bool, dtype: torch.dtype) -> None:
    model = narrow(name, causal=causal).to(dtype)
    latents = latents_for(model, 3)
    whole = model.decode(latents)
    streamed = joined(model.stream(latents, chunk=2))
    assert streamed.dtype == dtype
    # The whole clip's own distance from fp64 with the same weights and latents is what rounding makes here.
    exact = model.double().decode(latents.double())
    rounding = (whole.double() - exact).abs().max()
    # Convolution kernels round by the number of frames that they get; RMSNorm of short vectors magnifies it.
    assert (streamed.double() - whole.double()).abs().max() < max(4 * rounding, 1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 4), st.booleans(), st.booleans())
def test_latents_may_arrive_in_chunks_of_any_sizes(
    sizes: list[int], chunk: int, causal: bool, keep_first: bool
) -> None:
    model = narrow("tiny", causal=causal, is_video_dc_ae=keep_first).double()
    latents = latents_for(model, sum(sizes), batch=2)
    streamed = joined(model.stream(iter(latents.split(sizes, dim=2)), chunk=chunk))
    assert_same_function(streamed, model.decode(latents))


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_other_kernels_and_patch_heads_stream_too(kernel: int, patch_size: int) -> None:
    model = narrow("tiny", causal=False, decoder_dw_kernel_size=kernel, patch_size=patch_size).double()
    for length in (1, 5):
        latents = latents_for(model, length)
        assert_same_function(joined(model.stream(latents)), model.decode(latents))


@pytest.mark.parametrize("name", STRUCTURES)
def test_causal_stream_gives_the_frames_of_a_latent_before_it_asks_for_the_next(name: str) -> None:
    model = narrow(name, causal=True)
    asked = 0

    def camera() -> Iterator[Tensor]:
        nonlocal asked
        for latent in latents_for(model, 4).split(1, dim=2):
            asked += 1
            yield latent

    given_out = 0
    for frames in model.stream(camera()):
        given_out += frames.shape[2]
        assert given_out == model.spec.frames(asked)
    assert asked == 4


def test_non_causal_stream_gives_frames_before_the_clip_ends() -> None:
    model = narrow("tiny", causal=False)
    asked = 0

    def camera() -> Iterator[Tensor]:
        nonlocal asked
        for latent in latents_for(model, 60).split(1, dim=2):
            asked += 1
            yield latent

    next(model.stream(camera()))
    assert asked < 60


@pytest.mark.parametrize(
    ("name", "causal", "chunk"), [("tiny", False, 1), ("tiny", True, 1), *((*form, 8) for form in FORMS)]
)
def test_state_holds_only_what_the_convolutions_need_for_any_length(name: str, causal: bool, chunk: int) -> None:
    with torch.device("meta"):  # storage sizes are real, nothing is computed
        model = narrow(name, causal=causal)
        piece = torch.empty(1, model.spec.channels, chunk, 1, 1)

    convs = [m for m in model.modules() if isinstance(m, Conv3d | DepthwiseSeparableConv3d)]
    needed = sum(module.kernel - 1 for module in convs)

    stages = stages_of(model)
    frames, size_bytes = [], []
    with torch.no_grad():
        for _ in range(64 // chunk):  # over twice the longest delay
            stages.push(piece)
            held = stages.state()
            frames.append(sum(tensor.shape[2] for tensor in held))
            size_bytes.append(sum(tensor.untyped_storage().nbytes() for tensor in held))
            assert size_bytes[-1] == sum(tensor.numel() * tensor.element_size() for tensor in held)
        assert max(frames) == frames[-1] == needed
        assert max(size_bytes) == max(size_bytes[: len(size_bytes) // 2])
        for piece_of_tail in stages.flush():
            assert piece_of_tail.shape[2] <= model.spec.temporal
            assert sum(tensor.shape[2] for tensor in stages.state()) <= needed
    assert stages.state() == []


@pytest.mark.parametrize(("name", "causal"), FORMS)
def test_strips_equal_the_whole_frame(name: str, causal: bool) -> None:
    model = narrow(name, causal=causal, layers=1).double()
    latents = latents_for(model, 2, height=2)
    # Three strips cut at odd rows.
    assert_same_function(joined(model.stream(latents, strips=3)), model.decode(latents))


def test_a_strip_that_reads_only_some_rows_of_the_latents_equals_them_of_the_whole_frame() -> None:
    model = narrow("tiny", causal=False, layers=1).double()
    latents = latents_for(model, 2, height=28)
    height = 28 * model.spec.spatial
    rows = Rows(height // 2 - 5, height // 2 + 6, height)
    stages = stages_of(model)
    taken = stages.restrict(rows)
    assert 0 < taken.start < taken.stop < 28
    with torch.no_grad():
        pieces = [stages.push(latents[:, :, :, taken.start : taken.stop]), *stages.flush()]
    streamed = torch.cat([piece for piece in pieces if piece is not None], 2)
    assert_same_function(streamed, model.decode(latents)[..., rows.start : rows.stop, :])


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 2), min_size=1, max_size=3), st.integers(1, 2), st.integers(1, 5), st.booleans())
def test_strips_of_any_height_and_chunks_of_any_sizes_go_together(
    sizes: list[int], height: int, strips: int, causal: bool
) -> None:
    model = narrow("tiny", causal=causal, layers=1).double()
    latents = latents_for(model, sum(sizes), height=height)
    pieces = model.stream(iter(latents.split(sizes, dim=2)), chunk=2, strips=strips)
    assert_same_function(joined(pieces), model.decode(latents))


def test_strips_of_single_rows_and_other_kernels_and_heads() -> None:
    for patch_size, kernel in ((1, 7), (2, 3)):
        model = narrow(
            "tiny", causal=False, layers=1, patch_size=patch_size, decoder_dw_kernel_size=kernel
        ).double()
        latents = latents_for(model, 1)
        rows = model.spec.spatial
        assert_same_function(joined(model.stream(latents, strips=rows)), model.decode(latents))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strips_add_no_more_than_rounding_in_other_dtypes(dtype: torch.dtype) -> None:
    model = narrow("tiny", causal=False).to(dtype)
    latents = latents_for(model, 2, height=6)
    whole = model.decode(latents)
    streamed = joined(model.stream(latents, strips=3))
    exact = model.double().decode(latents.double())
    assert streamed.dtype == dtype
    rounding = (whole.double() - exact).abs().max()
    assert (streamed.double() - whole.double()).abs().max() < max(4 * rounding, 1e-5)


def test_a_strip_holds_state_of_the_rows_that_it_needs_only() -> None:
    def held_bytes(rows: Rows) -> int:
        with torch.device("meta"):
            model = narrow("tiny", causal=False)
            stages = stages_of(model)
            taken = stages.restrict(rows)
            with torch.no_grad():
                for _ in range(20):
                    stages.push(torch.empty(1, model.spec.channels, 1, len(taken), 2))
        return sum(tensor.untyped_storage().nbytes() for tensor in stages.state())

    spatial, latent_rows = narrow("tiny", causal=False).spec.spatial, 400
    height = latent_rows * spatial
    whole = held_bytes(Rows(0, height, height))
    strip = held_bytes(Rows(height // 4, height // 2, height))
    # A quarter, and a halo that 400 rows make small.
    assert 0.25 < strip / whole < 0.33


def test_a_full_temporary_folder_is_named() -> None:
    # A real full device behind the spool: /dev/full refuses every write.
    spool = Spool()
    with open("/dev/full", "wb", buffering=0) as full:
        spool._file.close()
        spool._file = full
        with pytest.raises(ModelError, match="does not take 16 bytes more: No space left on device"):
            spool.write(torch.zeros(4))


def test_flushed_stages_decode_another_clip() -> None:
    model = narrow("tiny", causal=False).double()
    stages = stages_of(model)
    with torch.no_grad():
        for length in (3, 2):
            latents = latents_for(model, length)
            out = [stages.push(latents), *stages.flush()]
            assert_same_function(torch.cat([x for x in out if x is not None], 2), model.decode(latents))


def test_caller_may_overwrite_the_latents_and_frames_it_handed_over() -> None:
    model = narrow("tiny", causal=True).double()
    latents = latents_for(model, 4)
    buffer = torch.empty_like(latents[:, :, :1])
    streamed = []
    for frames in model.stream(buffer.copy_(latents[:, :, i : i + 1]) for i in range(4)):
        streamed.append(frames.clone())
        frames.fill_(torch.nan)
        buffer.fill_(torch.nan)
    assert_same_function(torch.cat(streamed, 2), model.decode(latents))


def test_frames_have_no_gradients_and_the_callers_gradient_mode_stays() -> None:
    model = narrow("tiny", causal=False)
    modes = []

    def arriving() -> Iterator[Tensor]:
        for latent in latents_for(model, 12).split(1, dim=2):
            modes.append(torch.is_grad_enabled())
            yield latent

    for frames in model.stream(arriving()):
        assert not frames.requires_grad
        modes.append(torch.is_grad_enabled())
    assert len(modes) > 12
    assert all(modes)


def chunk_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (chunk_of(1, 48, 1, 2, 3), r"\(1, 48, 1, 2, 3\) after a first one with \(1, 48, any, 2, 2\)"),
        (chunk_of(2, 48, 1, 2, 2), r"\(2, 48, 1, 2, 2\) after a first one with \(1, 48, any, 2, 2\)"),
        (chunk_of(1, 16, 1, 2, 2), r"\(1, 16, 1, 2, 2\); this decoder takes \(batch, 48, frames"),
        (chunk_of(1, 48, 0, 2, 2), r"\(1, 48, 0, 2, 2\); this decoder takes .* none of them empty"),
        (chunk_of(48, 1, 2, 2), r"\(48, 1, 2, 2\); this decoder takes"),
        (chunk_of(1, 48, 1, 2, 2, dtype=torch.float64), "torch.float64 on cpu after .* torch.float32 on cpu"),
        (chunk_of(1, 48, 1, 2, 2, dtype=torch.int64), "torch.int64; a floating-point tensor is needed"),
        ([0.0], "is a list; a tensor is needed"),
    ],
)
def test_chunks_that_do_not_continue_the_clip_are_refused(second: object, message: str) -> None:
    model = narrow("tiny", causal=True)
    pieces = model.stream(iter([chunk_of(1, 48, 2, 2, 2), second]))
    assert next(pieces).shape[2] == 1
    with pytest.raises(ModelError, match=message):
        list(pieces)


def test_no_latents_at_all_are_refused() -> None:
    with pytest.raises(ModelError, match="the iterator ended before its first chunk"):
        list(narrow("tiny", causal=False).stream(iter([])))


@pytest.mark.parametrize(
    ("latents", "chunk", "message"),
    [
        (chunk_of(1, 16, 2, 2, 2), 1, r"\(1, 16, 2, 2, 2\); this decoder takes \(batch, 48, frames"),
        (7, 1, "are a int; a tensor or an iterable"),
        (chunk_of(1, 48, 2, 2, 2), 0, "chunk is 0; .* 1 or more"),
        (chunk_of(1, 48, 2, 2, 2), 1.5, "chunk is 1.5; .* 1 or more"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(latents: object, chunk: object, message: str) -> None:
    model = narrow("tiny", causal=False)
    with pytest.raises(ModelError, match=message):
        model.stream(latents, chunk=chunk)


def test_a_foreign_convolution_is_refused_by_name() -> None:
    model = narrow("tiny", causal=False)
    model.conv_in = torch.nn.Identity()
    with pytest.raises(ModelError, match="Cannot stream a Identity"):
        model.stream(chunk_of(1, 48, 1, 2, 2))


def test_strips_that_cannot_be_are_refused() -> None:
    model = narrow("tiny", causal=False)
    rows = 2 * model.spec.spatial
    with pytest.raises(ModelError, match=r"strips is 0; .* 1 or more"):
        model.stream(chunk_of(1, 48, 1, 2, 2), strips=0)
    with pytest.raises(ModelError, match=f"strips is {rows + 1}; these frames have {rows} rows"):
        model.stream(chunk_of(1, 48, 1, 2, 2), strips=rows + 1)
    with pytest.raises(ModelError, match="the iterator ended before"):
        list(model.stream(iter([]), strips=2))
