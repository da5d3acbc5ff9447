"""Training of the embedded teacher, in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from handheld.distill.data.videos import Footage
from handheld.distill.errors import DistillError
from handheld.distill.pretrain import PretrainRecipe, augment, batch, learning_rate, pretrain
from handheld.distill.progress import LoggedProgress
from handheld.distill.recipe import load_recipe, parse_recipe

RECIPE = """
kind: pretrain
model: {latent_channels: 4, encoder_width: 8, latent_width: 16, encoder_layers: [1, 1], decoder_layers: [1, 1]}
data: {videos: [a], frames: 3, sizes: [16, 32], batches: [2, 1], stride: [1, 2], short_side: 32, max_frames: 20}
optim:
  steps: 4
  lr: 1.0e-3
  warmup_steps: 2
  betas: [0.9, 0.98]
  weight_decay: 0.0
  eps: 1.0e-10
  ema_decay: 0.9
  clip_grad_norm: 1.0
  latent_penalty: 1.0e-4
log: {eval_every: 2, save_every: 2}
"""


@pytest.fixture
def footage() -> Footage:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 36, 40, 3), dtype=np.uint8)
    return Footage((Path("a"),), (pixels,))


def test_training_writes_metrics_and_resumes_to_the_same_weights(footage: Footage, tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE, PretrainRecipe)
    held_out = [torch.rand(1, 3, 3, 32, 32) * 2 - 1]
    whole = pretrain(recipe, footage, held_out, tmp_path / "whole", data="videos")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(line["psnr_db"] > 0 for line in lines)

    # Stopped when the checkpoint of step 2 was written, before that of step 4: what a kill leaves.
    class Stopped(Exception):
        pass

    class StopsAtStep4(LoggedProgress):
        def on_message(self, text: str) -> None:
            if '"step": 4' in text:
                raise Stopped

    with pytest.raises(Stopped):
        pretrain(recipe, footage, held_out, tmp_path / "parts", StopsAtStep4(), data="videos")
    resumed = pretrain(recipe, footage, held_out, tmp_path / "parts", data="videos")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    again = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["train_psnr_db"] for line in again] == [line["train_psnr_db"] for line in lines]
    with pytest.raises(DistillError, match="videos are not those"):
        pretrain(recipe, footage, held_out, tmp_path / "parts", data="other videos")


def test_a_loss_that_is_no_number_stops_the_training(footage: Footage, tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE.replace("lr: 1.0e-3", "lr: 1.0e+30"), PretrainRecipe)
    with pytest.raises(DistillError, match=r"failed at step \d: .*Lower optim.lr"):
        pretrain(recipe, footage, [], tmp_path / "out")


def test_the_rate_warms_up_and_falls_to_two_percent() -> None:
    optim = parse_recipe(RECIPE.replace("steps: 4", "steps: 100"), PretrainRecipe).optim
    rates = [learning_rate(optim, step) / optim.lr for step in range(100)]
    assert rates[0] == 0.5
    assert max(rates) == rates[1]
    assert rates[50] == pytest.approx(0.5)
    assert rates[-1] == 0.02


def test_a_batch_is_a_function_of_seed_and_step(footage: Footage) -> None:
    data = parse_recipe(RECIPE, PretrainRecipe).data
    first = batch(footage, data, seed=0, step=3)
    assert torch.equal(first, batch(footage, data, seed=0, step=3))
    other = batch(footage, data, seed=0, step=4)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert first.abs().max() <= 1


def test_augmentation_keeps_shape_and_range() -> None:
    clip = torch.rand(3, 3, 16, 16) * 2 - 1
    for seed in range(30):
        changed = augment(clip, np.random.default_rng(seed))
        assert changed.shape == clip.shape
        assert changed.abs().max() <= 1


def test_the_shipped_recipe_builds_the_embedded_teacher() -> None:
    from handheld.models.teachers import load_teacher

    recipe = load_recipe("teacher_embedded")
    assert isinstance(recipe, PretrainRecipe)
    built = {name: value.shape for name, value in recipe.model.build().state_dict().items()}
    shipped = {name: value.shape for name, value in load_teacher("embedded").vae.state_dict().items()}
    assert built == shipped
