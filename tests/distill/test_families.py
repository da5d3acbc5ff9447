"""Students of every family are trained: a few steps on real files, with feature taps, saved and loaded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handheld.distill import distill, parse_recipe, read_run
from handheld.distill.student import decoded
from handheld.models import FAMILIES, LatentSpec, LatentStatistics, load_decoder
from handheld.models.families.loading import preset_config


def _preset(name: str, **change: Any) -> Any:
    return replace(preset_config(FAMILIES, name)[1], **change)


# Narrow, with fewer stages where a family has a choice: clips of 16 pixels are enough.
SMALL = {
    "taehv": _preset("taew2_1", channels=(8, 8, 8, 8), layers=1),
    "taehv-super": _preset("taehv1_5_super", channels=(8, 8, 8, 8), layers=1, patch_size=1),
    "wan22": _preset(
        "wan22",
        decoder_block_out_channels=(8, 8, 8),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(False, True, True),
        decoder_spatio_only=(False, False, False),
        decoder_is_dw_conv=(False, False, False, False),
    ),
    "flash-ltx": _preset(
        "flash-ltx",
        decoder_block_out_channels=(8, 8, 8),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_operators=("frame", "dense", "depthwise", "depthwise"),
        decoder_force_shortcut=(True, False, False),
        decoder_spatio_temporal_scaling=(False, True, True),
        patch_size=2,
    ),
    "flash-wan": _preset("flash-wan", stage_channels=(8, 8, 8, 8), upsampled_channels=(8, 8, 8), layers=1),
}

STATISTICS = LatentStatistics(mean=(0.25,), std=(2.0,), scaling=0.5)

RECIPE = """
teacher: {name: stub}
student: {config: CONFIG}
data: {frames: 5, crop: 16, short_side: 24, held_out: 0.3, held_out_clips: 1}
loss: {feature: 0.1, taps: {mid_block: mid_block}}
optim: {steps: 3, lr: 1e-3}
log: {eval_every: 3, save_every: 3}
"""


class StubTeacher(nn.Module):
    """Latents of any latent space, from means of pixels, and a map of 5 channels at their size."""

    def __init__(self, spec: LatentSpec) -> None:
        super().__init__()
        self.spec, self.source, self.statistics = spec, "stub", STATISTICS
        self.info = SimpleNamespace(name="stub")
        self.weights_sha256 = "stub"

    def encode(self, frames: Tensor) -> Tensor:
        step, cell = self.spec.temporal, self.spec.spatial
        padded = torch.cat([*[frames[:, :, :1]] * (step - 1), frames], dim=2)
        pooled = F.avg_pool3d(padded, (step, cell, cell))
        return pooled.repeat(1, -(-self.spec.channels // 3), 1, 1, 1)[:, : self.spec.channels] + 0.1

    def decode_with_features(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        size = self.spec.decoded_shape(tuple(latents.shape))[2:]
        return F.interpolate(latents[:, :3], size=size), {"mid_block": latents[:, :5].tanh()}

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_with_features(latents)[0]


@pytest.mark.parametrize("name", SMALL)
def test_student_of_any_family_is_trained_saved_and_loaded(name: str, videos: Path, tmp_path: Path) -> None:
    config = SMALL[name]
    (tmp_path / "student.json").write_text(config.to_json())
    recipe = parse_recipe(RECIPE.replace("CONFIG", str(tmp_path / "student.json")))
    distill(recipe, tmp_path / "run", videos=[videos], teacher=StubTeacher(config.spec), device="cpu")  # type: ignore[arg-type]
    run = read_run(tmp_path / "run")
    student = load_decoder(run.student)
    assert student.config == config
    held_out = run.load_held_out()
    # Frames in [-1, 1] as the run folder has them, from latents as the encoder emits them.
    with torch.no_grad():
        frames = decoded(student, held_out["latents"][:1])[0].clamp(-1, 1)
    pixels = ((frames + 1) * 127.5).round().to(torch.uint8)
    assert (pixels.int() - held_out["student_frames"][:1].int()).abs().max() <= 1  # a rounding of sums
    if student.takes_normalised:
        # Kept with the weights: n = (z - 0.25) / 2 * 0.5.
        assert student.statistics == LatentStatistics((0.25,), (4.0,))
        plain = held_out["latents"][:1]
        assert torch.allclose(student.statistics.normalise(plain), STATISTICS.normalise(plain))


def test_every_part_of_a_student_gets_a_gradient() -> None:
    for config in SMALL.values():
        family = next(family for family in FAMILIES.values() if isinstance(config, family.config))
        torch.manual_seed(0)
        student = family.decoder(config).train()
        frames, maps = student.decode_with_features(torch.randn(1, config.spec.channels, 2, 2, 2))
        (frames.square().mean() + sum(tap.square().mean() for tap in maps.values())).backward()
        assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()] == []
