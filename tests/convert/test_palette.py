"""Palettes: their error, their groups, their edges."""

from __future__ import annotations

import pytest
import torch

from handheld.convert import TARGETS
from handheld.convert.precision.palette import palettise


def error(weight: torch.Tensor, bits: int, group: int | None = None) -> float:
    return (palettise(weight, bits, group).dense() - weight).square().mean().item()


def test_few_values_are_kept_exactly() -> None:
    weight = torch.tensor([0.5, -1.0, 2.0, 0.0])[torch.arange(64) % 4].reshape(8, 8)
    assert torch.equal(palettise(weight, 2).dense(), weight)


@pytest.mark.parametrize("bits", [4, 6])
def test_the_error_of_a_normal_weight_is_that_of_the_best_quantiser(bits: int) -> None:
    # Max, "Quantizing for minimum distortion", 1960, and Panter and Dite's limit: 0.95% of the variance in 4 bits,
    # sqrt(3) pi / 2 / 4**6 in 6. A finite sample is off by a few percent.
    wanted = {4: 0.009497, 6: 3**0.5 * torch.pi / 2 / 4**6}[bits]
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    assert error(weight, bits) == pytest.approx(wanted, rel=0.06)


def test_groups_have_tables_of_their_own() -> None:
    scales = torch.logspace(-3, 0, 4).repeat_interleave(8)[:, None]
    weight = scales * torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    palette = palettise(weight, 4, 8)
    assert palette.tables.shape == (4, 16)
    quiet = (palette.dense() - weight)[:8].square().mean()
    assert quiet < 0.02 * weight[:8].square().mean()
    assert (palettise(weight, 4).dense() - weight)[:8].square().mean() > 10 * quiet


def test_groups_that_do_not_come_out_even_are_one() -> None:
    assert palettise(torch.randn(12, 64), 4, 8).tables.shape == (1, 16)


def test_grouped_tables_are_offered_from_ios_18_on() -> None:
    assert "pal4g8" in TARGETS["ios18"].precisions
    assert "pal4g8" not in TARGETS["ios"].precisions
