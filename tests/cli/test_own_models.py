"""The README's "export a model that you have": three kinds of model, through five targets, by the command line.

Each model is what its owner would have: a folder that diffusers saved, a state dict under its released names, and a
Python file with a function.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from handheld.models import from_preset
from handheld.runtime.bundle import read_bundle

TARGETS = ("onnx", "android", "android-vulkan", "ios", "ios-executorch")
SIZE = ("--height", "64", "--width", "64")

MODULE = """
import torch
from torch import nn


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.widen = nn.Conv2d(4, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.narrow = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, latents):
        features = nn.functional.silu(self.norm(self.widen(latents)))
        return self.narrow(nn.functional.interpolate(features, scale_factor=8, mode="nearest")).tanh()


def make():
    torch.manual_seed(0)
    return Decoder(), torch.randn(1, 4, 8, 8)
"""


def sd_vae(folder: Path) -> tuple[str, ...]:
    """A folder of Stable Diffusion's autoencoder in small, with the attention of its middle."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
    ).save_pretrained(folder / "sd-vae")
    return (str(folder / "sd-vae"), *SIZE)


def taehv(folder: Path) -> tuple[str, ...]:
    """The state dict of TAEHV for Wan 2.1, at its full size, under the names of the public code."""
    torch.manual_seed(0)
    weights = from_preset("taew2_1").state_dict()
    torch.save({f"decoder.{name}": value for name, value in weights.items()}, folder / "taew2_1.pth")
    return (str(folder / "taew2_1.pth"), *SIZE, "--frames", "5")


def own_module(folder: Path) -> tuple[str, ...]:
    """A Python file with a function that returns a module and its example latents."""
    (folder / "mymodel.py").write_text(MODULE)
    return (f"{folder / 'mymodel.py'}:make",)


@pytest.mark.slow
@pytest.mark.parametrize("model", [sd_vae, taehv, own_module])
def test_a_model_that_you_have(
    model: Callable[[Path], tuple[str, ...]], handheld: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    arguments = model(tmp_path)
    targets = [part for target in TARGETS for part in ("--target", target)]
    status, _, errors = handheld("export", *arguments, *targets, "--out", tmp_path / "bundle")
    assert status == 0, errors
    status, text, errors = handheld("verify", tmp_path / "bundle")
    assert status == 0, errors
    assert text.count(" pass ") == 4  # all but android-vulkan, which needs a GPU
    artifacts = read_bundle(tmp_path / "bundle").artifacts
    assert len(artifacts) == len(TARGETS)
    for artifact in artifacts:
        if artifact.delegation is not None:
            assert (artifact.delegation["delegates"], artifact.delegation["ops_outside"]) == (1, {}), artifact.path
