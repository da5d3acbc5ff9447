"""The student against the released architecture: function, names, configurations, causality, strict loading."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from handheld.models import PRESETS, LatentSpec, ModelError, TurboVAEDConfig, TurboVAEDecoder

FIXTURES = Path(__file__).parents[1] / "fixtures"
LAYOUT = json.loads((FIXTURES / "released_layout.json").read_text())
RELEASED = tuple(LAYOUT)


def seeded_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The weights that the released decoder had when its outputs were recorded: a function of the names."""
    weights = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 100
        weights[name] = torch.randn(shape, generator=generator) / fan_in**0.5
    return weights


@pytest.fixture
def tiny() -> TurboVAEDecoder:
    torch.manual_seed(0)
    return TurboVAEDecoder.from_preset("tiny")


@pytest.mark.parametrize("name", RELEASED)
def test_released_weights_compute_the_released_function(name: str) -> None:
    recorded = load_file(FIXTURES / "released_outputs.safetensors")
    model = TurboVAEDecoder.from_preset(name)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(seeded_weights(shapes))
    frames = model.decode(recorded[f"{name}.latents"])
    wanted = recorded[f"{name}.frames"]
    # Frames reach 2.5 here, and processors add fp32 numbers in orders of their own.
    assert (frames - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", RELEASED)
def test_state_dict_has_the_released_names_and_shapes(name: str) -> None:
    released = {
        key.removeprefix("decoder."): shape
        for key, shape in LAYOUT[name]["state"].items()
        if key.startswith("decoder.")
    }
    with torch.device("meta"):
        model = TurboVAEDecoder(PRESETS[name])
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == released


@pytest.mark.parametrize("name", RELEASED)
def test_presets_equal_the_released_json(name: str) -> None:
    assert TurboVAEDConfig.from_dict(LAYOUT[name]["config"]) == PRESETS[name]


@pytest.mark.parametrize(
    ("name", "millions", "spec"),
    [
        ("ltx", 41.9, LatentSpec(128, 32, 8)),
        ("hunyuan", 40.7, LatentSpec(16, 8, 4)),
        ("cogvideox", 40.7, LatentSpec(16, 8, 4)),
        ("dc", 45.8, LatentSpec(128, 32, 4, first_frame_alone=False)),
    ],
)
def test_presets_have_the_published_size_and_compression(name: str, millions: float, spec: LatentSpec) -> None:
    with torch.device("meta"):
        model = TurboVAEDecoder(PRESETS[name])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    assert model.spec == spec


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("latent_frames", [1, 2, 5])
def test_decoded_clip_has_the_size_that_the_spec_states(causal: bool, latent_frames: int) -> None:
    model = TurboVAEDecoder.from_preset("tiny", causal=causal)
    frames = 2 * (latent_frames - 1) + 1
    latents = torch.randn(model.spec.latent_shape(frames=frames, height=16, width=24, batch=2))
    assert latents.shape[2] == latent_frames
    assert model.decode(latents).shape == (2, 3, frames, 16, 24)


@pytest.mark.parametrize("name", [*PRESETS])
def test_causal_decoder_does_not_look_ahead_and_the_released_form_does(name: str) -> None:
    small = replace(PRESETS[name], decoder_block_out_channels=(16,) * len(PRESETS[name].decoder_is_dw_conv[1:]))
    past = {}
    for causal in (True, False):
        torch.manual_seed(0)
        model = TurboVAEDecoder(replace(small, decoder_causal=causal)).eval()
        latents = torch.randn(1, model.spec.channels, 3, 2, 2)
        changed = latents.clone()
        changed[:, :, -1] += 1
        seen = model.spec.frames(2)
        difference = (model.decode(latents) - model.decode(changed)).abs().amax(dim=(0, 1, 3, 4))
        past[causal] = difference[:seen].max()
        assert difference[seen:].max() > 0
    assert past[True] == 0
    assert past[False] > 0


def test_features_have_the_documented_taps_and_end_in_the_same_frames(tiny: TurboVAEDecoder) -> None:
    latents = torch.randn(1, 48, 2, 2, 2)
    frames, features = tiny.decode_with_features(latents)
    assert list(features) == ["mid_block", "up_block_0", "up_block_1"]
    assert features["mid_block"].shape == (1, 64, 2, 2, 2)
    assert features["up_block_1"].shape == (1, 64, 3, 4, 4)
    assert torch.equal(frames, tiny(latents))


def test_save_and_load_round_trip_is_exact(tiny: TurboVAEDecoder, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "saved")
    loaded = TurboVAEDecoder.from_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert loaded.config == tiny.config
    assert not loaded.training
    for name, value in tiny.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_subfolder_and_dtype_are_as_diffusers_users_expect(tiny: TurboVAEDecoder, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "vae")
    loaded = TurboVAEDecoder.from_pretrained(tmp_path, subfolder="vae", torch_dtype=torch.bfloat16)
    assert loaded.conv_out.conv.weight.dtype == torch.bfloat16


def _bare(state):
    return state


def _autoencoder(state):
    whole = {f"decoder.{name}": value for name, value in state.items()}
    extra = {
        "aligned_feature_projection_heads.0.0.conv.weight": torch.zeros(8, 4, 1, 1, 1),
        "latents_mean": torch.zeros(48),
        "latents_std": torch.ones(48),
    }
    return {**whole, **extra}


def _trainer(state):
    parallel = {f"module.{name}": value for name, value in _autoencoder(state).items()}
    return {"epoch": 1, "state_dict": {"gen_model": parallel, "dics_model": {}}, "ema_state_dict": {}}


def _trainer_with_ema(state):
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    return {**_trainer(zeros), "ema_state_dict": _autoencoder(state)}


@pytest.mark.parametrize(
    ("layout", "suffix"),
    [
        *((layout, suffix) for layout in (_bare, _autoencoder) for suffix in (".safetensors", ".pth", ".ckpt")),
        # Nested dicts, which safetensors does not hold.
        *((layout, suffix) for layout in (_trainer, _trainer_with_ema) for suffix in (".pth", ".ckpt")),
    ],
)
def test_released_checkpoint_layouts_load(layout, suffix: str, tiny: TurboVAEDecoder, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    body = layout(tiny.state_dict())
    (save_file if suffix == ".safetensors" else torch.save)(body, path)
    loaded = TurboVAEDecoder.from_pretrained(path, config="tiny")
    latents = torch.randn(1, 48, 1, 2, 2)
    assert torch.equal(loaded.decode(latents), tiny.decode(latents))


def test_config_beside_a_checkpoint_file_is_used(tiny: TurboVAEDecoder, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    loaded = TurboVAEDecoder.from_pretrained(tmp_path / "diffusion_pytorch_model.safetensors")
    assert loaded.config == tiny.config


def test_missing_unmatched_and_misshapen_weights_are_all_listed(tiny: TurboVAEDecoder, tmp_path: Path) -> None:
    state = dict(tiny.state_dict())
    del state["conv_out.conv.bias"]
    state["conv_extra.weight"] = torch.zeros(1)
    state["conv_in.conv.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError) as caught:
        TurboVAEDecoder.from_pretrained(tmp_path / "weights.safetensors", config="tiny")
    message = str(caught.value)
    assert "missing (1): conv_out.conv.bias" in message
    assert "unmatched (1): conv_extra.weight" in message
    assert "conv_in.conv.bias (7,) instead of (64,)" in message


def test_corrupt_and_pickled_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="corrupt"):
        TurboVAEDecoder.from_pretrained(tmp_path / "weights.safetensors", config="tiny")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ModelError, match="corrupt"):
        TurboVAEDecoder.from_pretrained(tmp_path / "cut.pth", config="tiny")
    torch.save({"weights": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(ModelError, match="unpickling can run code"):
        TurboVAEDecoder.from_pretrained(tmp_path / "code.pth", config="tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_blok_out_channels": [1]}, "unknown key 'decoder_blok_out_channels'"),
        ({"timestep_conditioning": True}, "timestep_conditioning=True is not supported"),
        ({"patch_size": 3}, "patch_size is 3"),
        ({"decoder_is_dw_conv": [True]}, "decoder_is_dw_conv has 1 entries, 5 needed"),
        ({"latent_channels": "many"}, "latent_channels='many' is not int"),
        ({"decoder_causal": 1}, "decoder_causal=1 is not bool"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message.replace("[", r"\[")):
        TurboVAEDConfig.from_dict({**LAYOUT["ltx"]["config"], **change})


def test_unknown_preset_and_missing_source_say_what_exists(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there are: ltx, hunyuan, cogvideox, dc, tiny"):
        TurboVAEDecoder.from_preset("wan")
    with pytest.raises(ModelError, match=r"no config.json: .*diffusion_pytorch_model.safetensors"):
        TurboVAEDecoder.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="give a local folder"):
        TurboVAEDecoder.from_pretrained("nobody/nothing", local_files_only=True)


@pytest.mark.parametrize("shape", [(1, 16, 2, 2, 2), (48, 2, 2, 2), (1, 48, 0, 2, 2)])
def test_latents_of_the_wrong_shape_are_refused(shape: tuple[int, ...], tiny: TurboVAEDecoder) -> None:
    with pytest.raises(ModelError, match="48, frames, height, width"):
        tiny.decode(torch.zeros(shape))
