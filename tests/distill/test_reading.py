"""Videos as a player shows them: turned upright, with square pixels."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from handheld.distill.data.reading import Unreadable, check_readable, open_video, read_cropped, read_shrunk

HEIGHT, WIDTH = 32, 64


def scene() -> np.ndarray:
    """A picture whose quarters have colours of their own: (HEIGHT, WIDTH, 3)."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[: HEIGHT // 2, : WIDTH // 2] = (200, 40, 40)
    picture[: HEIGHT // 2, WIDTH // 2 :] = (40, 200, 40)
    picture[HEIGHT // 2 :, : WIDTH // 2] = (40, 40, 200)
    picture[HEIGHT // 2 :, WIDTH // 2 :] = (180, 180, 180)
    return picture


def record(path: Path, *, frames: int = 6, rotation: int = 0, aspect: Fraction | None = None) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect is not None:
            stream.sample_aspect_ratio = aspect
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def near(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Of one shape, and the same but at edges: the codec is lossy, most of all where colours change."""
    return found.shape == wanted.shape and bool(np.median(np.abs(found.astype(int) - wanted)) <= 12)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_turned_video_is_read_upright(tmp_path: Path, rotation: int) -> None:
    path = record(tmp_path / "turned.mp4", rotation=rotation)
    upright = np.rot90(scene(), rotation // 90)
    height, width = upright.shape[:2]
    frames, fps = read_cropped(path, height, width, most=4)
    assert (len(frames), fps) == (4, 24.0)
    assert near(frames[0], upright)
    assert not near(frames[0], np.rot90(scene(), rotation // 90 + 2)), "the test could not tell the way it turns"
    assert near(read_shrunk(path, min(height, width), 16, most=1)[0], upright)


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    path = record(tmp_path / "narrow.mp4", aspect=Fraction(1, 2))
    assert read_shrunk(path, HEIGHT, 16, most=1).shape == (1, HEIGHT, WIDTH // 2, 3)
    frames, _ = read_cropped(path, HEIGHT, WIDTH // 2, most=1)
    assert near(frames[0], scene()[:, ::2])


def test_a_turned_video_of_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = record(tmp_path / "both.mp4", aspect=Fraction(1, 2), rotation=90)
    assert near(read_shrunk(path, HEIGHT, 16, most=1)[0], np.rot90(scene()[:, ::2]))


def test_frames_cover_the_size_and_are_cropped_at_the_centre(tmp_path: Path) -> None:
    path = record(tmp_path / "wide.mp4")
    frames, _ = read_cropped(path, HEIGHT, HEIGHT, most=100)
    assert len(frames) == 6
    assert near(frames[0], scene()[:, (WIDTH - HEIGHT) // 2 : (WIDTH + HEIGHT) // 2])
    grown, _ = read_cropped(path, 2 * HEIGHT, 2 * HEIGHT, most=1)
    assert near(grown[0], frames[0].repeat(2, 0).repeat(2, 1))


def test_a_short_side_shrinks_and_grows_only_for_the_crop(tmp_path: Path) -> None:
    path = record(tmp_path / "wide.mp4")
    assert read_shrunk(path, 16, 8, most=2).shape == (2, 16, 32, 3)
    assert read_shrunk(path, 500, 8, most=2).shape == (2, HEIGHT, WIDTH, 3)
    assert read_shrunk(path, 16, 48, most=2).shape == (2, 48, 96, 3)


def test_what_is_no_video_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("text")
    for path, reason in ((tmp_path / "text.mp4", "Invalid data"), (tmp_path / "none.mp4", "No such file")):
        for read in (
            check_readable,
            lambda path: read_cropped(path, 8, 8, 1),
            lambda path: read_shrunk(path, 8, 8, 1),
        ):
            with pytest.raises(Unreadable, match=reason):
                read(path)
    with open_video(record(tmp_path / "good.mp4")) as video:
        assert video.fps == 24
