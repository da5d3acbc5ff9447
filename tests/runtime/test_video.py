"""Video files: whole, and as far as they got when frames, disk or process ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.video import partial_path, to_pixels, write_video

SUFFIXES = (".mp4", ".mov", ".mkv")


def pictures(clips: int, error: BaseException | None = None) -> Iterator[np.ndarray]:
    """Clips of 10 frames of noise, which no encoder makes small; then the error."""
    noise = np.random.default_rng(0)
    for _ in range(clips):
        yield noise.integers(0, 255, (10, 64, 64, 3), dtype=np.uint8)
    if error is not None:
        raise error


def frames_of(path: Path) -> int:
    """Frames that come out, all of them decoded."""
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_whole_video_has_every_frame_and_nothing_lies_beside_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    assert write_video(pictures(3), path, 24) == 30
    assert os.listdir(tmp_path) == [path.name]
    assert frames_of(path) == 30


def test_a_whole_mp4_has_its_index_and_no_fragments(tmp_path: Path) -> None:
    write_video(pictures(1), tmp_path / "out.mp4", 24)
    data = (tmp_path / "out.mp4").read_bytes()
    assert b"moov" in data
    assert b"moof" not in data


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeFailure("no memory"), ValueError("a defect")])
def test_clips_that_end_with_an_error_leave_what_there_was(
    tmp_path: Path, suffix: str, error: BaseException
) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_text("the video of another day")
    with pytest.raises(type(error)) as caught:
        write_video(pictures(3, error), path, 24)
    assert caught.value is error
    assert caught.value.__notes__ == [f"{partial_path(path)} holds the first 30 frames."]
    del error.__notes__  # parametrised: the next case raises it again
    assert frames_of(partial_path(path)) == 30
    assert path.read_text() == "the video of another day"


def test_an_error_before_the_first_frame_leaves_nothing_of_an_earlier_run_either(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with pytest.raises(RuntimeFailure):
        write_video(pictures(1, RuntimeFailure("first")), path, 24)
    with pytest.raises(RuntimeFailure, match="second") as caught:
        write_video(pictures(0, RuntimeFailure("second")), path, 24)
    assert not hasattr(caught.value, "__notes__")
    assert os.listdir(tmp_path) == []


_LIMITED = """
import resource, signal, sys
import numpy as np
from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.video import write_video

noise = np.random.default_rng(0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write that is refused, as by a full disk
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_video((noise.integers(0, 255, (10, 64, 64, 3), dtype=np.uint8) for _ in range(20)), sys.argv[1], 24)
except RuntimeFailure as error:
    print(error, *getattr(error, "__notes__", ()))
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("limit_bytes", [800, 20_000, 331_234])
def test_a_disk_that_takes_no_more_leaves_the_frames_that_it_took(
    tmp_path: Path, suffix: str, limit_bytes: int
) -> None:
    path = tmp_path / f"out{suffix}"
    command = [sys.executable, "-c", _LIMITED, str(path), str(limit_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be written: [Errno 27] File too large" in done.stdout
    if limit_bytes < 1000:
        assert os.listdir(tmp_path) == []
        return
    partial = partial_path(path)
    assert os.listdir(tmp_path) == [partial.name]
    kept = frames_of(partial)
    assert 0 < kept < 200
    assert f"{partial} holds the first {kept} frames." in done.stdout


_KILLED = """
import os, sys
import numpy as np
from handheld.runtime.video import write_video

noise = np.random.default_rng(0)

def clips():
    for _ in range(12):
        yield noise.integers(0, 255, (10, 64, 64, 3), dtype=np.uint8)
    os.kill(os.getpid(), 9)

write_video(clips(), sys.argv[1], 24)
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_killed_process_leaves_all_but_what_the_encoder_held(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    assert subprocess.run([sys.executable, "-c", _KILLED, str(path)], capture_output=True).returncode == -9
    assert os.listdir(tmp_path) == [partial_path(path).name]
    assert 0 < frames_of(partial_path(path)) <= 120


@pytest.mark.parametrize(
    ("name", "clips", "message"),
    [
        ("out.gif", 1, r"out\.gif: videos are written as \.mp4, \.mov, \.mkv"),
        ("nowhere/out.mp4", 1, "nowhere is no folder"),
        ("out.mp4", 0, r"No frames to write to .*out\.mp4"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, clips: int, message: str) -> None:
    with pytest.raises(RuntimeFailure, match=message):
        write_video(pictures(clips), tmp_path / name, 24)
    assert os.listdir(tmp_path) == []


def test_pixels_are_rounded_and_clipped() -> None:
    frames = np.array([-2.0, -1.0, 0.0, 1.0, 3.0], np.float32).reshape(1, 1, 5, 1, 1).repeat(3, axis=1)
    assert to_pixels(frames)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
