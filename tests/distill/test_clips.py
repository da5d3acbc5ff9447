from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handheld.distill import DataError
from handheld.distill.data import (
    ClipPlace,
    ClipRule,
    Footage,
    Span,
    draw,
    from_pixels,
    generator,
    load,
    pixels_of,
    spread,
    to_pixels,
)
from handheld.distill.recipe import DataSection

RULE = ClipRule(frames=5, crop=16, stride=(1, 3), flip=True, zoom=True)


def footage_of(*lengths: int, height: int = 24, width: int = 40) -> Footage:
    """Videos whose pixels say where they come from: (frame number, row, column)."""
    arrays = []
    for length in lengths:
        t, y, x = np.meshgrid(np.arange(length), np.arange(height), np.arange(width), indexing="ij")
        arrays.append(np.stack([t, y, x], -1).astype(np.uint8))
    return Footage(tuple(Path(f"{i}.mp4") for i in range(len(lengths))), tuple(arrays))


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(5, 40), start=st.integers(0, 20))
def test_a_drawn_clip_stays_within_its_span_and_frame(seed: int, length: int, start: int):
    footage = footage_of(start + length)
    clip = draw(generator(seed), footage, [Span(0, start, start + length)], RULE)
    assert start <= clip.start
    assert clip.start + 4 * clip.stride < start + length
    assert 1 <= clip.stride <= 3
    assert 16 <= clip.side <= 24
    assert 0 <= clip.top <= 24 - clip.side
    assert 0 <= clip.left <= 40 - clip.side


def test_clips_are_a_function_of_seed_and_index():
    footage, spans = footage_of(30, 30), [Span(0, 0, 30), Span(1, 0, 30)]
    clips = [draw(generator(1, index), footage, spans, RULE) for index in range(40)]
    assert clips[::-1] == [draw(generator(1, index), footage, spans, RULE) for index in reversed(range(40))]
    assert clips != [draw(generator(2, index), footage, spans, RULE) for index in range(40)]


def test_every_choice_varies():
    footage, spans = footage_of(30, 30), [Span(0, 0, 30), Span(1, 0, 30)]
    clips = [draw(generator(0, index), footage, spans, RULE) for index in range(60)]
    for name in ("video", "start", "stride", "top", "left", "side", "flip"):
        assert len({getattr(clip, name) for clip in clips}) > 1, name
    plain = [
        draw(generator(0, index), footage, spans, replace(RULE, flip=False, zoom=False)) for index in range(60)
    ]
    assert {(clip.flip, clip.side) for clip in plain} == {(False, 16)}


def test_a_cut_clip_has_the_pixels_that_it_names():
    pixels = pixels_of(footage_of(30), ClipPlace(0, 3, 2, 4, 6, 16), frames=5, crop=16)
    assert pixels.shape == (3, 5, 16, 16)
    assert pixels[0, :, 0, 0].tolist() == [3, 5, 7, 9, 11]
    assert pixels[1, 0, :, 0].tolist() == list(range(4, 20))
    assert pixels[2, 0, 0].tolist() == list(range(6, 22))
    mirrored = pixels_of(footage_of(30), ClipPlace(0, 3, 2, 4, 6, 16, flip=True), frames=5, crop=16)
    assert torch.equal(mirrored, pixels.flip(-1))


def test_a_zoomed_clip_is_resized_to_the_crop():
    pixels = pixels_of(footage_of(30), ClipPlace(0, 0, 1, 0, 0, 24), frames=5, crop=12)
    assert pixels.shape == (3, 5, 12, 12)
    # Columns 0..23 in pairs have the means 0.5, 2.5, ...; the border is off by what the filter cuts there.
    assert pixels[2, 0, 0].float().sub(torch.arange(12) * 2 + 0.5).abs().max() <= 1


def test_pixels_and_frames_convert_into_each_other():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(from_pixels(pixels)), pixels)
    assert from_pixels(pixels)[[0, -1]].tolist() == [-1, 1]
    assert to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_held_out_clips_do_not_overlap_and_take_turns_between_spans():
    footage = footage_of(30, 12)
    spans = [Span(0, 10, 30), Span(1, 6, 12)]
    clips = spread(footage, spans, replace(RULE, zoom=False), 4)
    assert [clip.video for clip in clips] == [0, 0, 0, 1]
    used = [(clip.video, clip.start + index) for clip in clips for index in range(5)]
    assert len(set(used)) == len(used)
    assert all(10 <= frame < 30 for video, frame in used if video == 0)
    assert all(6 <= frame < 12 for video, frame in used if video == 1)
    assert len(spread(footage, spans, RULE, 100)) == 5  # four fit into 20 frames and one into 6


@pytest.mark.parametrize(
    ("share", "lengths", "by_video"), [(0.34, 3, True), (0.1, 3, False), (0.5, 2, True), (0.4, 1, False)]
)
def test_a_share_takes_whole_videos_where_it_is_worth_one(
    tmp_path: Path, write_video, share: float, lengths: int, by_video: bool
):
    for seed in range(lengths):
        write_video(tmp_path / f"{seed}.mp4", frames=20 + seed, seed=seed)
    data = DataSection(frames=5, crop=16, videos=(str(tmp_path),), held_out=share)
    split = load(data, tmp_path / "cache", lambda done, total: None)
    train = {(span.video, t) for span in split.train for t in range(span.start, span.stop)}
    held_out = {(span.video, t) for span in split.held_out for t in range(span.start, span.stop)}
    assert not train & held_out
    assert len(train) + len(held_out) == sum(20 + seed for seed in range(lengths))
    assert by_video == (not {video for video, _ in train} & {video for video, _ in held_out})


def test_a_held_out_folder_inside_the_videos_is_not_trained_on(tmp_path: Path, write_video):
    (tmp_path / "val").mkdir()
    write_video(tmp_path / "a.mp4")
    write_video(tmp_path / "val" / "b.mp4")
    data = DataSection(frames=5, crop=16, videos=(str(tmp_path),), held_out=str(tmp_path / "val"))
    split = load(data, tmp_path / "cache", lambda done, total: None)
    names = [path.name for path in split.footage.paths]
    assert [names[span.video] for span in split.train] == ["a.mp4"]
    assert [names[span.video] for span in split.held_out] == ["b.mp4"]
    with pytest.raises(DataError, match="nothing is left to train on"):
        load(replace(data, videos=(str(tmp_path / "val"),)), tmp_path / "cache", lambda done, total: None)


def test_one_video_too_short_for_both_parts_is_an_error(tmp_path: Path, write_video):
    write_video(tmp_path / "a.mp4", frames=8)
    data = DataSection(frames=5, crop=16, videos=(str(tmp_path),))
    with pytest.raises(DataError, match=r"Nothing is left to hold out: 1 usable videos of 8 to 8 frames"):
        load(data, tmp_path / "cache", lambda done, total: None)


def test_no_videos_at_all_is_an_error_that_says_where_to_name_them(tmp_path: Path):
    with pytest.raises(DataError, match="--videos"):
        load(DataSection(frames=5, crop=16), tmp_path, lambda done, total: None)
