from __future__ import annotations

import math

import pytest
import torch

from handheld.distill.metrics import Scores, mean, score


def clip(*levels: float) -> torch.Tensor:
    """(1, 3, T, 16, 16): one constant frame per level, with a black and a white corner pixel."""
    frames = torch.stack([torch.full((3, 16, 16), level) for level in levels], dim=1)[None]
    frames[..., 0, 0], frames[..., -1, -1] = -1, 1
    return frames


def noisy(amplitude: float) -> torch.Tensor:
    """A clip of four levels in a chequerboard, `amplitude` above and below 0."""
    sign = torch.ones(16, 16)
    sign[::2, ::2] = sign[1::2, 1::2] = -1
    return (sign * amplitude).expand(1, 3, 2, 16, 16)


def test_plain_psnr_is_that_of_frames_mapped_to_0_1():
    # Chequerboards of amplitude 0.5 and 0.3 differ by 0.2 in [-1, 1], which is 0.1 in [0, 1]: 20 dB.
    assert score(noisy(0.5), noisy(0.3)).psnr_db == pytest.approx(20.0, abs=1e-4)


def test_the_released_convention_stretches_both_clips_and_so_ignores_contrast():
    result = score(noisy(0.5), noisy(0.3))
    assert result.psnr_minmax_db == pytest.approx(100.0, abs=1e-3)
    assert result.ssim_minmax == pytest.approx(1.0, abs=1e-5)
    assert result.ssim < 0.95


def test_the_conventions_agree_where_both_clips_use_the_whole_range():
    result = score(clip(0.2, 0.2), clip(0.0, 0.0))
    assert result.psnr_minmax_db == pytest.approx(result.psnr_db, abs=1e-4)
    assert result.ssim_minmax == pytest.approx(result.ssim, abs=1e-6)
    # All but the two corner pixels of 256 differ, by 0.1 in [0, 1].
    assert result.psnr_db == pytest.approx(-10 * math.log10(0.01 * 254 / 256), abs=1e-3)


def test_psnr_is_averaged_over_frames_in_decibels():
    both = score(clip(0.2, 0.02), clip(0.0, 0.0)).psnr_db
    each = [score(clip(level), clip(0.0)).psnr_db for level in (0.2, 0.02)]
    assert each[1] - each[0] == pytest.approx(20.0, abs=1e-3)
    assert both == pytest.approx(sum(each) / 2, abs=1e-3)


def test_frames_are_clamped_and_equal_ones_score_100_db_and_1():
    reference = clip(1.0)
    result = score(reference * 5, reference)
    assert result.psnr_db == pytest.approx(100.0)
    assert result.ssim == pytest.approx(1.0)


def test_ssim_equals_its_formula_on_constant_images():
    # Without variance SSIM is (2ab + c1) / (a² + b² + c1), with c1 = 0.01².
    a, b, c1 = 0.75, 0.5, 1e-4
    frames, reference = torch.full((1, 3, 1, 16, 16), 2 * a - 1), torch.full((1, 3, 1, 16, 16), 2 * b - 1)
    # The variance is computed as a difference of squares, so it is 0 to about 1e-7, beside c2 = 9e-4.
    assert score(frames, reference).ssim == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-3)


def test_the_mean_is_taken_score_by_score():
    assert mean([Scores(10, 0.5, 12, 0.6), Scores(20, 0.7, 14, 0.8)]) == Scores(15, 0.6, 13, 0.7)
