from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from handheld.distill import DataError
from handheld.distill.data import VideoSet, decode, scan

SIZES = {"short_side": 24, "crop": 16, "max_frames": 30, "min_frames": 5}


def test_text_posing_as_a_video_is_skipped_with_a_reason(tmp_path: Path, write_video):
    good = write_video(tmp_path / "good.mp4")
    (tmp_path / "fake.mp4").write_text("not a video at all\n" * 50)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    found = scan([tmp_path])
    assert found.paths == (good,)
    reasons = {item.path.name: item.reason for item in found.skipped}
    assert reasons.keys() == {"fake.mp4", "notes.txt", "empty.mp4"}
    assert "Invalid data" in reasons["fake.mp4"]
    assert "not a video by its name (.txt)" in reasons["notes.txt"]


def test_a_video_cut_short_is_skipped_or_read_as_far_as_it_goes(tmp_path: Path, write_video):
    whole = write_video(tmp_path / "whole.avi")
    data = whole.read_bytes()
    (tmp_path / "headless.avi").write_bytes(data[:100])
    (tmp_path / "half.avi").write_bytes(data[: len(data) * 3 // 4])
    found = scan([tmp_path])
    assert [path.name for path in found.paths] == ["half.avi", "whole.avi"]
    assert [item.path.name for item in found.skipped] == ["headless.avi"]
    footage = decode(found, tmp_path / "cache", **{**SIZES, "max_frames": 100})
    lengths = dict(zip([path.name for path in footage.paths], map(len, footage.arrays)))
    assert lengths["whole.avi"] == 40
    assert 5 <= lengths["half.avi"] < 40


def test_an_mp4_without_its_index_is_skipped(tmp_path: Path, write_video):
    # mp4 keeps its index at the end.
    whole = write_video(tmp_path / "whole.mp4")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:-600])
    assert scan([tmp_path]).paths == (whole,)


def test_an_empty_set_is_an_error_that_says_why_each_file_was_skipped(tmp_path: Path):
    (tmp_path / "a.mp4").write_text("text")
    with pytest.raises(DataError) as caught:
        scan([tmp_path, tmp_path / "absent"])
    assert "a.mp4: Invalid data" in str(caught.value)
    assert "absent: no such file or folder" in str(caught.value)


def test_sound_without_pictures_is_not_a_video(tmp_path: Path):
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="no video stream"):
        scan([path])


def test_frames_are_shrunk_to_the_short_side_capped_and_close_to_the_source(videos: Path, tmp_path: Path):
    footage = decode(scan([videos]), tmp_path, **SIZES)
    assert [array.shape for array in footage.arrays] == [(30, 24, 36, 3), (30, 36, 24, 3), (30, 24, 32, 3)]
    full = decode(scan([videos]), tmp_path, **{**SIZES, "short_side": 999})
    assert full.arrays[0].shape == (30, 32, 48, 3)  # never enlarged beyond what the crop needs
    # Colours survive: 8-pixel blocks of one colour shrink by 3/4 to blocks with the same mean.
    assert abs(full.arrays[0].mean() - footage.arrays[0].mean()) < 2


def test_a_video_smaller_than_the_crop_grows_until_the_crop_fits(videos: Path, tmp_path: Path):
    footage = decode(scan([videos]), tmp_path, **{**SIZES, "short_side": 64, "crop": 64})
    assert [min(array.shape[1:3]) for array in footage.arrays] == [64, 64, 64]


def test_a_short_video_is_skipped_and_only_short_ones_are_an_error(tmp_path: Path, write_video):
    write_video(tmp_path / "short.mp4", frames=4)
    with pytest.raises(DataError, match=r"short.mp4: has 4 frames that decode; a clip needs 5"):
        decode(scan([tmp_path]), tmp_path / "cache", **SIZES)
    write_video(tmp_path / "long.mp4", frames=9)
    footage = decode(scan([tmp_path]), tmp_path / "cache", **SIZES)
    assert [path.name for path in footage.paths] == ["long.mp4"]
    assert [item.path.name for item in footage.skipped] == ["short.mp4"]


def test_decoded_frames_are_read_again_unless_truncated_or_the_file_changed(tmp_path: Path, write_video):
    path = write_video(tmp_path / "a.mp4")
    cache = tmp_path / "cache"

    def decoded() -> np.ndarray:
        return np.array(decode(scan([path]), cache, **SIZES).arrays[0])

    first = decoded()
    (store,) = cache.iterdir()
    before = store.stat().st_mtime_ns
    assert np.array_equal(decoded(), first)
    assert store.stat().st_mtime_ns == before
    store.write_bytes(store.read_bytes()[:-100])
    assert np.array_equal(decoded(), first)
    assert store.stat().st_mtime_ns != before
    write_video(path, seed=5)
    assert not np.array_equal(decoded(), first)


def test_the_fingerprint_changes_with_the_files(tmp_path: Path, write_video):
    path = write_video(tmp_path / "a.mp4")
    before = VideoSet((path,)).fingerprint
    assert VideoSet((path,)).fingerprint == before
    os.utime(path, ns=(1, 1))
    assert VideoSet((path,)).fingerprint != before


def test_real_clips_are_read_whatever_their_container(tmp_path: Path):
    clips = Path(__file__).resolve().parents[3] / "shared" / "data" / "clips" / "train"
    wanted = [clips / name for name in ("tree.avi", "intel_asl_again.mkv", "moviepy_big_buck_bunny_0_30.webm")]
    if not all(path.exists() for path in wanted):
        pytest.skip(f"the shared clips are not at {clips}")
    footage = decode(scan(wanted), tmp_path, short_side=64, crop=32, max_frames=12, min_frames=5)
    assert [(len(array), min(array.shape[1:3])) for array in footage.arrays] == [(12, 64)] * 3
