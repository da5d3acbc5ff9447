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


# Small language models: head sizes, groups of heads and layer sizes that differ from one another.
SMALL_LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "LlamaForCausalLM",
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "qwen2": (
        "Qwen2ForCausalLM",
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    ),
    "opt": (
        "OPTForCausalLM",
        {
            "hidden_size": 64,
            "ffn_dim": 224,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 64,
        },
    ),
}

TEXT = (REPO / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def small_language_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`small_language_model(name, **config)` saves a randomly initialised language model with a tokenizer trained
    on the README, made once for each name and configuration, and gives its folder. Copy it before changing it."""
    made: dict[str, Path] = {}

    def save(name: str, **config: Any) -> Path:
        key = f"{name}{config}"
        if key in made:
            return made[key]
        transformers = pytest.importorskip("transformers", reason="needs the extra llm")
        import torch
        from tokenizers import ByteLevelBPETokenizer

        class_name, fields = SMALL_LANGUAGE_MODELS[name]
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator([TEXT], vocab_size=384, special_tokens=["<end>"], show_progress=False)
        common = {"vocab_size": 384, "max_position_embeddings": 256, "initializer_range": 0.3, "init_std": 0.3}
        cls = getattr(transformers, class_name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = cls(
                cls.config_class(**{**common, **fields, **config}, bos_token_id=0, eos_token_id=0, pad_token_id=0)
            )
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        made[key] = folder
        return folder

    return save
