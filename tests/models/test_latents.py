"""Shape rules of latent spaces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handheld.models import LatentSpec, ModelError

specs = st.builds(
    LatentSpec,
    channels=st.integers(1, 128),
    spatial=st.sampled_from([1, 8, 32]),
    temporal=st.sampled_from([1, 2, 4, 8]),
    first_frame_alone=st.booleans(),
)


@given(spec=specs, latent_frames=st.integers(1, 9), rows=st.integers(1, 5))
def test_latent_shape_inverts_frames(spec: LatentSpec, latent_frames: int, rows: int) -> None:
    shape = spec.latent_shape(
        frames=spec.frames(latent_frames), height=rows * spec.spatial, width=spec.spatial, batch=3
    )
    assert shape == (3, spec.channels, latent_frames, rows, 1)


def test_frame_rule_is_written_as_users_write_it() -> None:
    assert LatentSpec(128, 32, 8).frame_rule == "8k+1"
    assert LatentSpec(128, 32, 4, first_frame_alone=False).frame_rule == "4k"


def test_every_wrong_size_is_named_with_the_nearest_right_ones() -> None:
    with pytest.raises(ModelError) as caught:
        LatentSpec(128, 32, 8).latent_shape(frames=10, height=250, width=256)
    assert "frames=10 is not 8k+1 (nearest: 9 and 17)" in str(caught.value)
    assert "height=250 is not a multiple of 32 (nearest: 224 and 256)" in str(caught.value)
    assert "width" not in str(caught.value)


@pytest.mark.parametrize("frames", [0, -1, 1.5])
def test_no_frames_are_refused(frames: int) -> None:
    with pytest.raises(ModelError):
        LatentSpec(16, 8, 4).latent_shape(frames=frames, height=8, width=8)


def test_differences_name_both_values() -> None:
    differences = LatentSpec(16, 8, 4).differences(LatentSpec(128, 8, 4, first_frame_alone=False))
    assert differences == ["latent channels: 16 and 128", "frame rule: 4k+1 and 4k"]
