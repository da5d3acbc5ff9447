"""A teacher and a student of a few hundred parameters with the interfaces of the real ones; also a script.

    python toy.py RUN VIDEOS RECIPE [--resume]

runs a distillation with them, so that a test can kill it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from handheld.models import LatentSpec

SPEC = LatentSpec(channels=6, spatial=4, temporal=2)


def grow(x: torch.Tensor, space: int, time: int) -> torch.Tensor:
    """Nearest-neighbour upsampling; in time the first frame stays alone."""
    return F.interpolate(x, scale_factor=(time, space, space))[:, :, time - 1 :]


class ToyTeacher(nn.Module):
    """Taps: `mid_block` of 8 channels at latent size, `up_block_0` of 8 at twice its frames, height and width."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.spec, self.source = SPEC, "toy"
        self.info = SimpleNamespace(name="toy")
        self.weights_sha256 = f"toy-{seed}"
        self.encoded = 0
        self.decoded = 0
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Conv3d(3 * 16, 6, 1)
            self.mid = nn.Conv3d(6, 8, 1)
            self.up = nn.Conv3d(8, 8, 1)
            self.out = nn.Conv3d(8, 3, 1)
        self.requires_grad_(False).eval()

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        self.encoded += len(frames)
        padded = torch.cat([frames[:, :, :1], frames], dim=2)
        pooled = F.avg_pool3d(padded, (2, 1, 1))
        n, c, t, h, w = pooled.shape
        cells = pooled.reshape(n, c, t, h // 4, 4, w // 4, 4).permute(0, 1, 4, 6, 2, 3, 5)
        return self.embed(cells.reshape(n, c * 16, t, h // 4, w // 4))

    def decode_with_features(self, latents: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.decoded += len(latents)
        mid = torch.tanh(self.mid(latents))
        up = torch.tanh(self.up(grow(mid, 2, 2)))
        return self.out(grow(up, 2, 1)), {"mid_block": mid, "up_block_0": up}

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decode_with_features(latents)[0]


class ToyStudent(nn.Module):
    """Taps: `mid_block` of 5 channels and `up_block_0` of 7, both at latent size: each needs a head."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self.spec = SPEC
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.mid = nn.Conv3d(6, 5, 3, padding=1)
            self.up = nn.Conv3d(5, 7, 3, padding=1)
            self.out = nn.Conv3d(7, 3, 3, padding=1)

    def decode_with_features(self, latents: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mid = F.silu(self.mid(latents))
        up = F.silu(self.up(mid))
        return self.out(grow(up, 4, 2)), {"mid_block": mid, "up_block_0": up}

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decode_with_features(latents)[0]

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "diffusion_pytorch_model.safetensors")
        (folder / "config.json").write_text("{}")


RECIPE = """\
teacher: {name: toy}
student: {preset: tiny}
data:
  held_out: 0.3
  held_out_clips: 3
  frames: 5
  crop: 16
  short_side: 24
  zoom: true
  stride: [1, 2]
  cache: CACHE
  clips_per_video: PER_VIDEO
loss:
  feature: 0.5
  taps: {mid_block: mid_block, up_block_0: up_block_0}
  perceptual: {name: ssim, weight: 0.1}
optim:
  steps: 12
  lr: 3e-3
  batch_size: 2
  accumulate: 2
  warmup_steps: 3
  schedule: cosine
  clip_grad_norm: 1.0
log: {eval_every: 5, save_every: 4}
seed: 3
"""


def recipe_text(cache: str = "none") -> str:
    return RECIPE.replace("CACHE", cache).replace("PER_VIDEO", "null" if cache == "none" else "10")


if __name__ == "__main__":
    from handheld.distill import distill

    torch.set_num_threads(1)
    run, videos, recipe, *flags = sys.argv[1:]
    distill(
        recipe,
        run,
        videos=[videos],
        resume="--resume" in flags,
        teacher=ToyTeacher(),
        student=ToyStudent(),
        device="cpu",
    )
