"""export --stream, verify and decode --stream, and what goes wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from handheld.latents_file import write_latents
from handheld.runtime.profile_file import read_profile

Run = Callable[..., tuple[int, str, str]]


def test_a_clip_of_another_length_is_decoded_by_a_streamed_artefact(handheld: Run, tmp_path: Path) -> None:
    import av

    bundle, size = tmp_path / "bundle", ("--height", 16, "--width", 32)
    # Causal, for one segment: the fewer, the sooner it is exported.
    status, out, _ = handheld(
        *("export", "tiny", "--causal", "--target", "onnx", "--stream", "--chunk", 2, *size, "--frames", 3),
        *("--out", bundle),
    )
    assert status == 0
    assert "onnx/stream" in out
    status, out, _ = handheld("verify", bundle)
    assert status == 0
    write_latents(tmp_path / "l.safetensors", np.zeros((2, 48, 5, 2, 4), np.float32), {})
    status, out, _ = handheld("decode", bundle, tmp_path / "l.safetensors", "--stream", "-o", tmp_path / "out.mp4")
    assert status == 0
    assert "18 frames of 16x32" in out
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 18

    quick = ("--repeat", 2, "--rounds", 1, "--warmup", 0)
    status, out, _ = handheld("profile", bundle, *quick, "--out", tmp_path / "p")
    assert status == 0
    assert "first frame" in out
    (measured,) = read_profile(tmp_path / "p" / "profile.json").subjects
    assert (measured.error, measured.passes, measured.units_per_run) == (None, True, 3)
    (one,) = measured.rounds
    assert len(one.first_frame_ns) == 2
    assert all(0 < first < whole for first, whole in zip(one.first_frame_ns, one.latency_ns))
    assert one.peak_bytes is not None

    write_latents(tmp_path / "tall.safetensors", np.zeros((1, 48, 5, 4, 4), np.float32), {})
    status, _, err = handheld("decode", bundle, tmp_path / "tall.safetensors", "-o", tmp_path / "no.mp4")
    assert status == 1
    assert "latents of 48x5x4x4" in err
    assert "decodes 48xanyx2x4" in err
    assert not (tmp_path / "no.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--chunk", 2), "chunk (2) goes with streaming"),
        (("--stream", "--precision", "auto"), "recision auto does not go with streaming"),
        (("--stream", "--precision", "int8"), "Precision int8 is calibrated on whole clips"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: tuple[object, ...], says: str, handheld: Run, tmp_path: Path
) -> None:
    status, _, err = handheld("export", "tiny", "--target", "onnx", *arguments, "--out", tmp_path / "bundle")
    assert status == 1
    assert says in err
    assert not (tmp_path / "bundle").exists()
