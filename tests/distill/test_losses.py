from __future__ import annotations

import sys

import pytest
import torch

from handheld.distill import DistillError
from handheld.distill.features import FeatureLoss, Head, Shuffle, shuffle_between
from handheld.distill.losses import DistillLoss
from handheld.distill.perceptual import PERCEPTUAL
from handheld.distill.recipe import LossSection, PerceptualSection


def test_a_spatial_shuffle_is_pixel_shuffle_frame_by_frame():
    maps = torch.randn(2, 3 * 4, 5, 6, 7)
    expected = torch.stack([torch.nn.functional.pixel_shuffle(frame, 2) for frame in maps.unbind(2)], dim=2)
    assert torch.equal(Shuffle(1, 2)(maps), expected)


def test_a_shuffle_in_time_drops_the_first_frame_and_keeps_the_channel_order():
    maps = torch.arange(8.0).reshape(1, 8, 1, 1, 1).repeat(1, 2, 2, 1, 1)  # two channels of 8, two frames
    shuffled = Shuffle(2, 2)(maps)
    assert shuffled.shape == (1, 2, 3, 2, 2)
    first, second = torch.arange(4.0).reshape(2, 2), torch.arange(4.0, 8.0).reshape(2, 2)
    for channel in range(2):
        assert torch.equal(shuffled[0, channel], torch.stack([second, first, second]))


@pytest.mark.parametrize(
    ("student", "teacher", "shuffle"),
    [
        ((5, 8, 8), (5, 8, 8), Shuffle(1, 1)),
        ((5, 8, 8), (5, 16, 16), Shuffle(1, 2)),
        ((5, 8, 8), (9, 16, 16), Shuffle(2, 2)),
        ((5, 8, 8), (10, 16, 16), None),
        ((5, 8, 8), (5, 16, 8), None),
        ((5, 8, 8), (5, 4, 4), None),
        ((5, 8, 8), (9, 8, 8), None),
    ],
)
def test_only_the_released_relations_of_sizes_have_a_shuffle(student, teacher, shuffle):
    assert shuffle_between(student, teacher) == shuffle


@pytest.mark.parametrize(
    ("width", "teacher_width", "sizes", "channels"),
    [
        (256, 512, ((3, 4, 4), (3, 4, 4)), 512),  # LTX up_block_1
        (512, 512, ((3, 4, 4), (3, 8, 8)), 2048),  # Hunyuan up_block_0
        (512, 512, ((3, 4, 4), (5, 8, 8)), 4096),  # CogVideoX up_block_0
    ],
)
def test_heads_have_the_released_widths_and_give_the_teachers_shape(width, teacher_width, sizes, channels):
    student, teacher = (1, width, *sizes[0]), (1, teacher_width, *sizes[1])
    with torch.device("meta"):
        loss = FeatureLoss({"up": "up"}, {"up": student}, {"up": teacher})
        head = loss.heads["up"]
        assert isinstance(head, Head)
        assert [(layer.in_channels, layer.out_channels) for layer in head] == [
            (width, channels),
            (channels, channels),
        ]
        assert head(torch.empty(student)).shape == teacher


def test_maps_of_one_shape_are_compared_without_a_head():
    shapes = {"mid": (1, 4, 2, 3, 3)}
    loss = FeatureLoss({"mid": "mid"}, shapes, shapes)
    assert not list(loss.parameters())
    ours, its = torch.zeros(shapes["mid"]), torch.full(shapes["mid"], 2.0)
    assert float(loss({"mid": ours}, {"mid": its})) == 4.0


def test_taps_are_summed_and_taken_by_the_recipes_pairing():
    shape = (1, 1, 1, 1, 1)
    loss = FeatureLoss({"a": "x", "b": "y"}, {"a": shape, "b": shape}, {"x": shape, "y": shape})
    student = {"a": torch.full(shape, 1.0), "b": torch.full(shape, 2.0)}
    teacher = {"x": torch.full(shape, 4.0), "y": torch.full(shape, 2.5)}
    assert float(loss(student, teacher)) == 9.25


def test_unit_features_have_a_root_mean_square_of_1_clip_by_clip():
    shape = (2, 4, 2, 3, 3)
    loss = FeatureLoss({"mid": "mid"}, {"mid": shape}, {"mid": shape}, unit=True)
    teacher = torch.randn(shape) * torch.tensor([100.0, 0.01]).reshape(2, 1, 1, 1, 1)
    assert float(loss({"mid": torch.zeros(shape)}, {"mid": teacher})) == pytest.approx(1.0, rel=1e-5)
    assert float(loss({"mid": torch.zeros(shape)}, {"mid": torch.zeros(shape)})) == 0.0


def test_every_tap_that_cannot_match_is_named_with_both_sizes():
    student = {"mid": (1, 4, 2, 3, 3), "up": (1, 4, 2, 3, 3)}
    teacher = {"mid": (1, 4, 2, 9, 9), "up": (1, 4, 2, 3, 3)}
    with pytest.raises(DistillError) as caught:
        FeatureLoss({"mid": "mid", "upp": "up", "up": "nope"}, student, teacher)
    message = str(caught.value)
    assert "the student's mid is 2x3x3 (frames, height, width) and the teacher's mid 2x9x9" in message
    assert "the student has no tap upp (it has mid, up)" in message
    assert "the teacher has no tap nope (it has mid, up)" in message


@pytest.mark.parametrize(("name", "size"), [("ssim", 16), ("ms_ssim", 176)])
def test_a_perceptual_term_is_zero_for_equal_clips_and_its_gradient_lowers_it(name: str, size: int):
    torch.manual_seed(0)
    term = PERCEPTUAL[name]()
    reference = torch.rand(1, 3, 1, size, size) * 2 - 1
    assert float(term(reference, reference)) == pytest.approx(0, abs=1e-5)
    frames = (reference + 0.3 * torch.randn_like(reference)).requires_grad_()
    before = term(frames, reference)
    before.backward()
    step = 0.1 * frames.grad / frames.grad.abs().max()
    assert float(term(frames.detach() - step, reference)) < float(before.detach())


def test_lpips_without_its_package_is_a_clear_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(DistillError, match=r"needs the package lpips.*choose ssim or ms_ssim"):
        PERCEPTUAL["lpips"]()


def test_the_loss_is_the_weighted_sum_of_the_terms_that_it_reports():
    shape = (1, 4, 2, 3, 3)
    section = LossSection(l1=2.0, feature=0.5, taps={"mid": "mid"}, perceptual=PerceptualSection("ssim", 0.25))
    loss = DistillLoss(section, FeatureLoss(section.taps, {"mid": shape}, {"mid": shape}), PERCEPTUAL["ssim"]())
    frames, reference = torch.zeros(1, 3, 2, 16, 16), torch.full((1, 3, 2, 16, 16), 0.5)
    total, terms = loss(frames, reference, {"mid": torch.ones(shape)}, {"mid": torch.zeros(shape)})
    assert terms.keys() == {"l1", "feature", "perceptual"}
    assert (float(terms["l1"]), float(terms["feature"])) == (0.5, 1.0)
    assert float(total) == pytest.approx(2.0 * 0.5 + 0.5 * 1.0 + 0.25 * float(terms["perceptual"]))
