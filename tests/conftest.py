"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported, and for the processes that tests start: on tensors as small as those in tests, threads
# that wait for each other make everything several times slower wherever another process uses a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPO = Path(__file__).resolve().parents[1]

# Small VAEs of each family: enough blocks that chunks, caches and taps are exercised, and compressions that
# are not the released ones.
SMALL_TEACHERS: dict[str, dict[str, Any]] = {
    "ltx": {
        "latent_channels": 6,
        "block_out_channels": (8, 16),
        "down_block_types": ("LTXVideoDownBlock3D",) * 2,
        "decoder_block_out_channels": (8, 16),
        "layers_per_block": (1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1),
        "spatio_temporal_scaling": (True, True),
        "decoder_spatio_temporal_scaling": (True, True),
        "decoder_inject_noise": (False, False, False),
        "downsample_type": ("conv", "conv"),
        "upsample_residual": (False, False),
        "upsample_factor": (1, 1),
        "patch_size": 2,
    },
    "hunyuan": {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("HunyuanVideoDownBlock3D",) * 3,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "spatial_compression_ratio": 4,
    },
    "cogvideox": {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("CogVideoXDownBlock3D",) * 3,
        "up_block_types": ("CogVideoXUpBlock3D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "wan": {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    },
}


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real clips and facts beside a checkout; not part of the repository."""
    folder = REPO.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is absent")
    return folder


@pytest.fixture(scope="session")
def save_vae(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`save_vae(name, **config)` saves a randomly initialised VAE of the teacher's class and gives its folder."""
    import torch

    from handheld.models.teachers import TEACHERS
    from handheld.models.teachers._diffusers import vae_class

    def save(name: str, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vae_class(TEACHERS[name].diffusers_class)(**config).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def small_teacher_folder(save_vae: Callable[..., Path]) -> Callable[[str], Path]:
    """`small_teacher_folder(name)` is a small randomly initialised checkpoint of a teacher, made once. Copy it
    before changing it."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_vae(name, **SMALL_TEACHERS[name])
        return made[name]

    return folder
