"""Every family's decoder: public function, names, configurations, latent spaces, strict loading."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from handheld.models import FAMILIES, LatentSpec, ModelError, from_preset, load_decoder
from handheld.models.families.loading import preset_config
from handheld.models.families.taehv import TAEHVDecoder
from handheld.models.families.turbo_vaed_wan import TurboVAEDWanDecoder
from handheld.models.streaming import stream_frames

FIXTURES = Path(__file__).parents[1] / "fixtures"

# What public code has as state dicts, whole models with their encoders, and what it computes with seeded weights:
# madebyollin/taehv at 1f14a56, GAIR-NLP/daVinci-MagiHuman at 209209b, Aoko955/Flash-VAED at 54a27aa.
LAYOUTS: dict[str, dict[str, list[int]]] = json.loads((FIXTURES / "family_layouts.json").read_text())
RECORDED = load_file(FIXTURES / "family_outputs.safetensors")


def config_of(name: str) -> Any:
    """A preset, or the small configuration of Turbo-VAED for Wan that was recorded too."""
    if not name.startswith("wan22."):
        return preset_config(FAMILIES, name)[1]
    return replace(
        preset_config(FAMILIES, "wan22")[1],
        decoder_block_out_channels=(16, 16, 32, 32),
        decoder_layers_per_block=(1,) * 5,
        decoder_is_dw_conv=(False, False, False, True, True),
        decoder_dw_kernel_size=5,
        use_unpatchify=False,
        first_chunk_size=3,
        step_size=2,
    )


def decoder_of(config: Any) -> Any:
    family = next(family for family in FAMILIES.values() if isinstance(config, family.config))
    return family, family.decoder(config).eval()


def seeded(name: str, shape: list[int]) -> torch.Tensor:
    """The weight that the public model had when its outputs were recorded: a function of its name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 100
    return torch.randn(shape, generator=generator) / fan_in**0.5


def public_state(name: str) -> dict[str, torch.Tensor]:
    return {key: seeded(key, shape) for key, shape in LAYOUTS[name].items()}


# Recorded under a name of their own, with the layout of another configuration of the same shapes.
SAME_LAYOUT = {"taehv1_5": "taew2_1", "wan22.windows": "wan22.small"}
RECORDINGS = sorted(name.removesuffix(".frames") for name in RECORDED if name.endswith(".frames"))


@pytest.mark.parametrize("name", RECORDINGS)
def test_public_weights_compute_the_public_function(name: str) -> None:
    family, decoder = decoder_of(config_of(name))
    layout = dict(LAYOUTS[SAME_LAYOUT.get(name, name)])
    if name == "taehv1_5":  # 32 channels and patches of 2 instead of 16 channels
        layout |= {
            "decoder.1.weight": [256, 32, 3, 3],
            "decoder.22.weight": [12, 64, 3, 3],
            "decoder.22.bias": [12],
        }
    state = {key: seeded(key, shape) for key, shape in layout.items()}
    decoder.load_state_dict(family.own_weights(state, decoder.config))
    latents = RECORDED[f"{'wan22.small' if name == 'wan22.windows' else name}.latents"]
    decode = decoder.decode_windows if name == "wan22.windows" else decoder.decode
    wanted = RECORDED[f"{name}.frames"]
    # Relative, as frames reach 2.9 here; and processors add fp32 numbers in orders of their own.
    assert (decode(latents) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", LAYOUTS)
def test_decoder_takes_the_public_names_and_nothing_of_the_encoder(name: str) -> None:
    family, decoder = decoder_of(config_of(name))
    state = {key: torch.empty(shape, device="meta") for key, shape in LAYOUTS[name].items()}
    taken = family.own_weights(state, decoder.config)
    assert {key: value.shape for key, value in taken.items()} == {
        key: value.shape for key, value in decoder.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "millions", "spec"),
    [
        ("taehv", 9.84, LatentSpec(16, 8, 4)),
        ("taew2_1", 9.84, LatentSpec(16, 8, 4)),
        ("taew2_2", 9.92, LatentSpec(48, 16, 4)),
        ("taehv1_5", 9.89, LatentSpec(32, 16, 4)),
        ("taeltx_2", 10.19, LatentSpec(128, 32, 8)),
        ("taew2_2_super", 18.99, LatentSpec(48, 16, 4)),
        ("taehv1_5_super", 18.99, LatentSpec(32, 16, 4)),
        ("wan22", 107.12, LatentSpec(48, 16, 4)),
        ("flash-ltx", 66.96, LatentSpec(128, 32, 8)),
        ("flash-wan", 5.86, LatentSpec(16, 8, 4)),
    ],
)
def test_presets_have_the_public_size_and_latent_space(name: str, millions: float, spec: LatentSpec) -> None:
    family, config = preset_config(FAMILIES, name)
    with torch.device("meta"):
        decoder = family.decoder(config).eval()
    assert round(sum(p.numel() for p in decoder.parameters()) / 1e6, 2) == millions
    assert decoder.spec == spec
    latents = torch.empty(
        decoder.spec.latent_shape(frames=spec.temporal * 2 + 1, height=256, width=320), device="meta"
    )
    assert decoder(latents).shape == (1, 3, spec.temporal * 2 + 1, 256, 320)


SMALL = {
    "taehv": replace(config_of("taew2_2"), channels=(16, 16, 8, 8), layers=1),
    "taehv-super": replace(config_of("taew2_2_super"), channels=(16, 8, 8, 8), layers=2),
    "wan22": replace(config_of("wan22"), decoder_block_out_channels=(16,) * 4, decoder_layers_per_block=(1,) * 5),
    "flash-ltx": replace(
        config_of("flash-ltx"), decoder_block_out_channels=(8, 8, 16, 16), decoder_layers_per_block=(1,) * 5
    ),
    "flash-wan": replace(
        config_of("flash-wan"), stage_channels=(16, 16, 8, 4), upsampled_channels=(8, 8, 4), layers=1
    ),
}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return decoder_of(SMALL[request.param])[1]


@pytest.mark.parametrize("latent_frames", [1, 2, 5])
def test_decoded_clip_has_the_size_that_the_spec_states(latent_frames: int, small: Any) -> None:
    latents = torch.randn(2, small.spec.channels, latent_frames, 2, 3)
    frames = small.decode(latents)
    assert tuple(frames.shape) == small.spec.decoded_shape(tuple(latents.shape))
    # A batch is its clips.
    assert torch.allclose(frames[1:], small.decode(latents[1:]), atol=1e-5)


@pytest.mark.parametrize(("latent_frames", "chunk", "strips"), [(1, 1, 1), (4, 1, 1), (4, 3, 2), (5, 2, 3)])
def test_streamed_frames_are_those_of_the_whole_clip(
    latent_frames: int, chunk: int, strips: int, small: Any
) -> None:
    decoder = small.double()
    latents = torch.randn(1, decoder.spec.channels, latent_frames, 3, 2, dtype=torch.float64)
    streamed = torch.cat([*stream_frames(decoder, latents, chunk, strips)], dim=2)
    assert streamed.shape == decoder(latents).shape
    assert (streamed - decoder(latents)).abs().max() < 1e-10  # what fp64 rounds


def test_causal_form_does_not_look_ahead(small: Any) -> None:
    family = decoder_of(small.config)[0]
    torch.manual_seed(0)
    causal = family.decoder(family.causal(small.config)).eval()
    latents = torch.randn(1, causal.spec.channels, 4, 2, 2)
    changed = latents.clone()
    changed[:, :, -1] += 1
    difference = (causal.decode(latents) - causal.decode(changed)).abs().amax(dim=(0, 1, 3, 4))
    seen = causal.spec.frames(3)
    assert difference[:seen].max() == 0
    assert difference[seen:].max() > 0


def test_features_are_whole_clips_and_end_in_the_same_frames(small: Any) -> None:
    latents = torch.randn(1, small.spec.channels, 3, 2, 3)
    frames, features = small.decode_with_features(latents)
    assert torch.equal(frames, small(latents))
    assert features["mid_block"].shape[2:] == (3, 2, 3)
    for tap in features.values():
        _, _, t, h, w = tap.shape
        assert (h, w) == (tap.shape[3], tap.shape[3] * 3 // 2)
        growth = (t - 1) // 2
        assert t == 2 * growth + 1
        assert growth in (1, 2, 4, 8)


def test_save_and_load_round_trip_is_exact(small: Any, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    loaded = load_decoder(tmp_path)
    assert type(loaded) is type(small)
    assert loaded.config == small.config
    assert loaded.state_dict().keys() == small.state_dict().keys()
    for name, value in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize("name", ["taew2_1", "taew2_2_super", "taeltx_2"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_taehv_checkpoints_tell_their_configuration(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"anything{suffix}"  # the file's name says nothing
    (save_file if suffix == ".safetensors" else torch.save)(public_state(name), path)
    decoder = load_decoder(path)
    assert isinstance(decoder, TAEHVDecoder)
    assert decoder.config == config_of(name)
    wanted = RECORDED[f"{name}.frames"]
    assert (decoder.decode(RECORDED[f"{name}.latents"]) - wanted).abs().max() < 1e-5


def test_taehv_without_doubling_takes_the_later_frames_of_the_same_weights(tmp_path: Path) -> None:
    state = public_state("taew2_1")
    torch.save(state, tmp_path / "weights.pth")
    preview = replace(config_of("taew2_1"), decoder_time_upscale=(False, False, False))
    decoder = load_decoder(tmp_path / "weights.pth", config=preview)
    assert decoder.spec == LatentSpec(16, 8, 1)
    assert torch.equal(decoder.state_dict()["13.conv.weight"], state["decoder.13.conv.weight"][128:])


def test_taehv_for_minimax_is_refused_with_the_reason(tmp_path: Path) -> None:
    state = public_state("taew2_1")
    state["decoder.1.weight"] = torch.zeros(256, 24, 3, 3)
    state["decoder.22.weight"], state["decoder.22.bias"] = torch.zeros(12, 64, 3, 3), torch.zeros(12)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="chunks of five latent frames"):
        load_decoder(tmp_path / "weights.safetensors")


def test_taehv_frames_are_in_range_and_have_gradients_beyond_it_in_training() -> None:
    torch.manual_seed(0)
    decoder = decoder_of(SMALL["taehv"])[1]
    latents = torch.randn(1, 48, 2, 2, 2)
    assert decoder.value_range == (0.0, 1.0)
    frames = decoder(latents)
    assert frames.min() >= 0
    assert frames.max() <= 1
    raw = decoder.train()(latents)
    assert torch.equal(raw.clamp(0, 1), frames)
    assert (raw < 0).any()


@pytest.mark.parametrize("name", ["wan22.small", "flash-wan"])
def test_weights_are_taken_strictly(name: str, tmp_path: Path) -> None:
    state = public_state(name)
    keys = sorted(key for key in state if key.startswith("decoder."))
    del state[keys[0]]
    state["decoder.extra.weight"] = torch.zeros(1)
    state[keys[1]] = torch.zeros(3, 1, 7)
    torch.save({"ema_state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "last.ckpt")
    with pytest.raises(ModelError) as caught:
        load_decoder(tmp_path / "last.ckpt", config=config_of(name))
    message = str(caught.value)
    bare = keys[0] if name == "flash-wan" else keys[0].removeprefix("decoder.")
    assert f"missing (1): {bare}" in message
    assert "unmatched (1):" in message
    assert "wrong shape (1):" in message


def test_wan22_trainer_checkpoint_loads_its_averaged_weights(tmp_path: Path) -> None:
    state = public_state("wan22.small") | {"latents_mean": torch.zeros(48), "latents_std": torch.ones(48)}
    averaged = {f"module.{key}": value for key, value in state.items()}
    torch.save(
        {"state_dict": {key: value * 0 for key, value in state.items()}, "ema_state_dict": averaged},
        tmp_path / "c.ckpt",
    )
    decoder = load_decoder(tmp_path / "c.ckpt", config=config_of("wan22.small"))
    assert torch.equal(decoder.state_dict()["conv_in.conv.weight"], state["decoder.conv_in.conv.weight"])
    assert isinstance(decoder, TurboVAEDWanDecoder)
    # The statistics in the checkpoint are placeholders; the public code's own are used.
    assert decoder.statistics is not None
    assert decoder.statistics.std[0] == 0.4765


def test_released_wan22_json_is_read_whatever_class_it_names(tmp_path: Path) -> None:
    config = config_of("wan22")
    data = json.loads(config.to_json())
    data |= {"in_channels": 3, "spatial_compression_ratio": 16, "temporal_compression_ratio": 4}
    for name in ("TurboVAED", "AutoencoderKLTurboVAED", None):
        if name is None:
            data.pop("_class_name")
        else:
            data["_class_name"] = name
        (tmp_path / "config.json").write_text(json.dumps(data))
        from handheld.models.families.loading import read_config

        assert read_config(FAMILIES, tmp_path / "config.json")[1] == config


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("taew2_1", {"arch_variant": "huge"}, "arch_variant is 'huge'"),
        ("taew2_1", {"channels": (1, 2)}, "channels has 2 entries, 4 needed"),
        ("wan22", {"decoder_is_dw_conv": (True,)}, "decoder_is_dw_conv has 1 entries, 5 needed"),
        ("wan22", {"step_size": 0}, "step_size is 0"),
        ("flash-ltx", {"decoder_operators": ("thin",) * 5}, "has 'thin'; there are dense, depthwise, frame"),
        ("flash-wan", {"framewise": ()}, "framewise has 0 entries, 4 needed"),
    ],
)
def test_impossible_configurations_are_refused(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        replace(config_of(name), **change)


@pytest.mark.parametrize("name", SMALL)
def test_configurations_survive_json_and_unknown_keys_do_not(name: str) -> None:
    config = SMALL[name]
    data = json.loads(config.to_json())
    assert type(config).from_dict(data, "here") == config
    with pytest.raises(ModelError, match=r"here is not .* unknown key 'colour'"):
        type(config).from_dict({**data, "colour": 1}, "here")


def test_presets_decode() -> None:
    assert from_preset("flash-wan").decode(torch.zeros(1, 16, 1, 1, 1)).shape == (1, 3, 1, 8, 8)
