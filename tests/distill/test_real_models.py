"""The engine with the real student and a teacher of the real class, both random and small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from handheld.distill import distill, parse_recipe, read_run
from handheld.models import TurboVAEDecoder
from handheld.models.teachers import load_teacher

RECIPE = """
teacher: {name: embedded, source: TEACHER}
student: {preset: tiny}
data:
  frames: 5
  crop: 32
  short_side: 32
  held_out: 0.3
  held_out_clips: 2
  cache: features
  clips_per_video: 2
loss:
  feature: 0.2
  taps: {mid_block: mid_block, up_block_1: up_block_0}
  unit_features: true
  perceptual: {name: ssim, weight: 0.1}
optim: {steps: 4, lr: 2.0e-3}
log: {eval_every: 2, save_every: 2}
"""


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VAE with the embedded teacher's latent space, as `save_pretrained` writes it."""
    from diffusers import AutoencoderKLLTXVideo

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    AutoencoderKLLTXVideo(
        latent_channels=48,
        block_out_channels=(8, 16),
        down_block_types=("LTXVideo095DownBlock3D",) * 2,
        decoder_block_out_channels=(16,),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",),
        upsample_residual=(True,),
        upsample_factor=(2,),
        patch_size=4,
        patch_size_t=1,
    ).save_pretrained(folder)
    return folder


def test_a_run_by_names_resumes_to_the_bit_and_its_student_loads(
    teacher_folder: Path, videos: Path, tmp_path: Path, one_thread: None
):
    recipe = parse_recipe(RECIPE.replace("TEACHER", str(teacher_folder)))

    class Stop(Exception):
        pass

    class Stopping:
        def on_stage(self, name, done, total): ...

        def on_step(self, step, total, losses, seconds):
            if step == 3:
                raise Stop

        def on_eval(self, step, student, teacher): ...

        def on_message(self, text): ...

    with pytest.raises(Stop):
        distill(recipe, tmp_path / "a", videos=[videos], progress=Stopping(), device="cpu")
    distill(None, tmp_path / "a", resume=True, device="cpu")
    distill(recipe, tmp_path / "b", videos=[videos], device="cpu")
    one, two = (load_file(tmp_path / name / "checkpoint" / "state.safetensors") for name in "ab")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert {name.split(".")[0] for name in one} == {"student", "ema", "loss", "optimizer"}

    run = read_run(tmp_path / "a")
    student = TurboVAEDecoder.from_pretrained(run.student)
    held_out = run.load_held_out()
    pixels = ((student.decode(held_out["latents"][:1]).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(pixels, held_out["student_frames"][:1])
    teacher = load_teacher(run.teacher_name, run.teacher_source)
    decoded = ((teacher.decode(held_out["latents"][:1]).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(decoded, held_out["teacher_frames"][:1])
    assert run.facts["teacher"]["weights_sha256"] == teacher.weights_sha256
