"""Image decoders: the function of diffusers' classes, released names, configurations and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import handheld
from handheld import ModelError
from handheld.models.teachers._diffusers import vae_class
from handheld.runtime.profile import Subject, profile

SMALL: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "shift_factor": 0.1,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (16, 16),
        "decoder_block_out_channels": (16, 16),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    },
}


def saved(name: str, folder: Path) -> Any:
    """A small autoencoder of diffusers with random weights, in `folder/vae` as pipelines have it."""
    torch.manual_seed(0)
    vae = vae_class(name)(**SMALL[name]).eval()
    vae.save_pretrained(folder / "vae")
    return vae


@pytest.mark.parametrize("name", list(SMALL))
def test_a_pipelines_autoencoder_computes_what_diffusers_does(name: str, tmp_path: Path) -> None:
    vae = saved(name, tmp_path)
    opened = handheld.open_source(str(tmp_path))
    latents = torch.randn(1, 4, 6, 8)
    with torch.no_grad():
        wanted = vae.decode(latents).sample
        assert torch.equal(opened.model(latents), wanted)
    assert opened.layout == "NCHW"
    assert opened.spec is not None
    assert opened.spec.decoded_shape(tuple(latents.shape)) == tuple(wanted.shape)


def test_statistics_come_from_the_configuration(tmp_path: Path) -> None:
    saved("AutoencoderKL", tmp_path)
    statistics = handheld.open_source(str(tmp_path)).statistics
    assert statistics is not None
    latents = torch.randn(1, 4, 2, 2)
    assert torch.allclose(statistics.normalise(latents), (latents - 0.1) * 0.18215)
    saved("AutoencoderTiny", tmp_path / "tiny")
    assert handheld.open_source(str(tmp_path / "tiny")).statistics is None


def test_attention_weights_of_old_checkpoints_are_taken(tmp_path: Path) -> None:
    vae = saved("AutoencoderKL", tmp_path)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, before in old.items():
        state = {name.replace(f".{new}.", f".{before}."): value for name, value in state.items()}
    assert any(".proj_attn." in name for name in state)
    save_file(state, file)
    latents = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        assert torch.equal(handheld.open_source(str(tmp_path)).model(latents), vae.decode(latents).sample)


def test_a_missing_weight_and_an_unknown_setting_are_errors(tmp_path: Path) -> None:
    saved("AutoencoderKL", tmp_path)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["decoder.conv_in.bias"]
    save_file(state, file)
    with pytest.raises(ModelError, match=r"missing \(1\): decoder\.conv_in\.bias"):
        handheld.load_decoder(tmp_path)
    config = tmp_path / "vae" / "config.json"
    config.write_text(config.read_text().replace("{", '{"new_key": 1,', 1))
    with pytest.raises(ModelError, match="unknown key 'new_key'"):
        handheld.load_decoder(tmp_path)


def test_stages_that_do_not_match_are_errors() -> None:
    tiny, full = (handheld.FAMILIES[name].config for name in ("autoencoder-tiny", "autoencoder-kl"))
    with pytest.raises(ModelError, match="2 stages and num_decoder_blocks 3"):
        tiny(decoder_block_out_channels=(8, 8), num_decoder_blocks=(1, 1, 1))
    with pytest.raises(ModelError, match="1 names and block_out_channels 2"):
        full(latent_channels=4, block_out_channels=(8, 8), up_block_types=("UpDecoderBlock2D",))


@pytest.mark.parametrize(
    ("preset", "channels", "parameters"),
    [
        ("sd15", 4, 49_490_199),
        ("sdxl", 4, 49_490_199),
        ("flux", 16, 49_545_475),
        ("taesd", 4, 1_222_531),
        ("taef1", 16, 1_229_443),
    ],
)
def test_full_configurations_have_the_released_shapes(preset: str, channels: int, parameters: int) -> None:
    with torch.device("meta"):
        decoder = handheld.from_preset(preset)
        latents = torch.empty(1, channels, 8, 8)
        assert tuple(decoder(latents).shape) == (1, 3, 64, 64)
    assert decoder.spec.spatial == 8
    assert sum(p.numel() for p in decoder.parameters()) == parameters


@pytest.mark.parametrize("name", list(SMALL))
def test_small_ones_are_exported_whole_and_verified(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    targets = ["onnx", "android", "ios"]
    bundle = handheld.export(str(tmp_path), tmp_path / "bundle", targets=targets, height=16, width=16)

    verdicts = handheld.verify(bundle)
    assert [(v.artifact.name, v.status, v.reason) for v in verdicts] == [(t, "pass", "") for t in targets]
    android = bundle.artifact("android").delegation
    assert android is not None
    assert (android["delegates"], android["ops_outside"]) == (1, {})


def test_a_run_of_an_image_decoder_is_measured_as_one_frame(tmp_path: Path) -> None:
    saved("AutoencoderTiny", tmp_path)
    bundle = handheld.export(str(tmp_path), tmp_path / "bundle", targets=["onnx"], height=16, width=16)
    (measured,) = profile([Subject("onnx", bundle, bundle.artifact("onnx"))], repeat=1, rounds=1).subjects
    assert measured.error is None
    assert (measured.units_per_run, measured.passes) == (1, True)
