from __future__ import annotations

import pytest
import torch

from handheld.distill.recipe import PerceptualSection, parse_recipe
from handheld.distill.ssim import MS_SSIM_LEAST, WINDOW, ms_ssim, ssim


def pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images, so that neighbouring pixels correlate, and noisy copies."""
    torch.manual_seed(0)
    reference = torch.nn.functional.avg_pool2d(torch.rand(2, 3, height + 4, width + 4), 5, 1)
    return (reference + 0.05 * torch.randn_like(reference)), reference


def test_ssim_is_that_of_torchmetrics_within_the_image():
    similarity = pytest.importorskip("torchmetrics.functional.image").structural_similarity_index_measure
    images, reference = pair(40, 64)
    _, full = similarity(images, reference, data_range=1.0, return_full_image=True)
    torch.testing.assert_close(ssim(images, reference), full[..., 5:-5, 5:-5].mean())


def test_ms_ssim_is_the_weighted_product_over_scales_of_torchmetrics_terms():
    similarity = pytest.importorskip("torchmetrics.functional.image").structural_similarity_index_measure
    images, reference = pair(MS_SSIM_LEAST, MS_SSIM_LEAST + 16)
    image, expected = images[:1, :1], 1.0
    real = reference[:1, :1]
    for weight in (0.0448, 0.2856, 0.3001, 0.2363):
        _, contrast = similarity(image, real, data_range=1.0, return_contrast_sensitivity=True)
        expected *= float(contrast) ** weight
        image, real = (torch.nn.functional.avg_pool2d(x, 2) for x in (image, real))
    _, full = similarity(image, real, data_range=1.0, return_full_image=True)
    expected *= float(full[..., 5:-5, 5:-5].mean()) ** 0.1333
    assert float(ms_ssim(images[:1, :1], reference[:1, :1])) == pytest.approx(expected, abs=1e-5)


def test_a_negative_similarity_keeps_ms_ssim_and_its_gradient_finite():
    _, reference = pair(MS_SSIM_LEAST, MS_SSIM_LEAST)
    images = (1 - reference).requires_grad_()
    value = ms_ssim(images, reference)
    value.backward()
    assert 0 <= float(value.detach()) < 0.1
    assert images.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "function", "least"), [("ssim", ssim, WINDOW), ("ms_ssim", ms_ssim, MS_SSIM_LEAST)]
)
def test_the_smallest_crop_that_a_recipe_allows_is_the_smallest_that_works(toy, name: str, function, least: int):
    recipe = parse_recipe(
        toy.recipe_text()
        .replace("name: ssim", f"name: {name}")
        .replace("zoom: true", "zoom: false")
        .replace("crop: 16", f"crop: {least}")
        .replace("short_side: 24", "short_side: 300")
    )
    assert recipe.loss.perceptual == PerceptualSection(name, 0.1)
    assert float(function(*pair(least, least))) < 1
    with pytest.raises(RuntimeError):
        function(*pair(least - 1, least - 1))
