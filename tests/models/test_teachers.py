"""Teachers: latent space, features, freezing and export of each family, on small random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from handheld.models import LatentSpec, ModelError
from handheld.models.compat import check_compatible
from handheld.models.teachers import TEACHERS, Teacher, load_teacher
from handheld.models.teachers._diffusers import vae_class
from handheld.models.teachers.loading import measure_spec

FAMILIES = ("ltx", "hunyuan", "cogvideox", "wan")

EMBEDDED_CONFIG = {
    "latent_channels": 48,
    "block_out_channels": (48, 96),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 2,
    "decoder_block_out_channels": (96,),
    "layers_per_block": (2, 2),
    "decoder_layers_per_block": (3, 2),
    "spatio_temporal_scaling": (True,),
    "decoder_spatio_temporal_scaling": (True,),
    "decoder_inject_noise": (False, False),
    "downsample_type": ("spatiotemporal",),
    "upsample_residual": (True,),
    "upsample_factor": (2,),
    "patch_size": 4,
    "patch_size_t": 1,
}

# Wan 2.2's VAE: residual blocks, and frames cut into 2x2 patches.
WAN22_CONFIG = {
    "base_dim": 4,
    "z_dim": 6,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
}

_NEW_IN_22 = ("is_residual", "patch_size", "in_channels", "out_channels")
WAN21_CONFIG = {key: value for key, value in WAN22_CONFIG.items() if key not in _NEW_IN_22}


@pytest.fixture(scope="module")
def teacher(small_teacher_folder: Callable[[str], Path]) -> Callable[[str], Teacher]:
    loaded: dict[str, Teacher] = {}

    def get(name: str) -> Teacher:
        if name not in loaded:
            loaded[name] = load_teacher(name, small_teacher_folder(name))
        return loaded[name]

    return get


def clip(spec: LatentSpec, latent_frames: int, batch: int = 1) -> torch.Tensor:
    shape = (batch, 3, spec.frames(latent_frames), 2 * spec.spatial, 3 * spec.spatial)
    return torch.rand(shape, generator=torch.Generator().manual_seed(latent_frames)) * 2 - 1


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("ltx", LatentSpec(channels=128, spatial=32, temporal=8)),
        ("hunyuan", LatentSpec(channels=16, spatial=8, temporal=4)),
        ("cogvideox", LatentSpec(channels=16, spatial=8, temporal=4)),
        ("wan", LatentSpec(channels=16, spatial=8, temporal=4)),
    ],
)
def test_full_configuration_has_the_latent_space_that_its_record_states(name: str, spec: LatentSpec) -> None:
    with torch.device("meta"):  # shapes only: no weights, no time
        vae = vae_class(TEACHERS[name].diffusers_class)()
    assert measure_spec(TEACHERS[name], vae) == spec == TEACHERS[name].spec
    assert spec.frame_rule == ("8k+1" if name == "ltx" else "4k+1")


def test_embedded_configuration_has_the_latent_space_that_its_record_states() -> None:
    with torch.device("meta"):
        vae = vae_class(TEACHERS["embedded"].diffusers_class)(**EMBEDDED_CONFIG)
    assert measure_spec(TEACHERS["embedded"], vae) == TEACHERS["embedded"].spec
    assert TEACHERS["embedded"].spec == LatentSpec(channels=48, spatial=8, temporal=2)


def test_packaged_weights_load_as_the_embedded_teacher() -> None:
    if not Path(TEACHERS["embedded"].default_source).is_dir():
        pytest.skip("the weights of the embedded teacher are not in this checkout")
    embedded = load_teacher("embedded")
    assert embedded.spec == TEACHERS["embedded"].spec
    assert embedded.dtype == torch.float32


@pytest.mark.parametrize("latent_frames", [1, 2, 3, 8])
@pytest.mark.parametrize("name", FAMILIES)
def test_spec_equals_the_shapes_of_encode_and_decode(
    teacher: Callable[[str], Teacher], name: str, latent_frames: int
) -> None:
    small = teacher(name)
    assert small.spec != TEACHERS[name].spec  # measured on this checkpoint, not copied from the record
    frames = clip(small.spec, latent_frames, batch=2)
    _, _, count, height, width = frames.shape
    latents = small.encode(frames)
    assert latents.shape == small.spec.latent_shape(frames=count, height=height, width=width, batch=2)
    assert latents.shape[2] == latent_frames
    assert small.decode(latents).shape == frames.shape


def test_wan_2_2_patches_count_as_compression(save_vae: Callable[..., Path]) -> None:
    wan = load_teacher("wan", save_vae("wan", **WAN22_CONFIG))
    assert wan.spec == LatentSpec(channels=6, spatial=8, temporal=4)
    frames = clip(wan.spec, 3)
    latents = wan.encode(frames)
    with torch.no_grad():
        assert torch.equal(wan.decode(latents), wan.vae.decode(latents).sample)


def test_timestep_conditioned_ltx_decodes_at_timestep_zero(save_vae: Callable[..., Path]) -> None:
    folder = save_vae("ltx", **EMBEDDED_CONFIG, timestep_conditioning=True)
    ltx = load_teacher("ltx", folder)
    latents = ltx.encode(clip(ltx.spec, 2))
    with torch.no_grad():
        clean, noisy = (ltx.vae.decode(latents, torch.tensor([t])).sample for t in (0.0, 0.5))
    assert torch.equal(ltx.decode(latents), clean)
    assert not torch.allclose(clean, noisy)


@pytest.mark.parametrize("latent_frames", [1, 3, 5])
@pytest.mark.parametrize("name", FAMILIES)
def test_decode_equals_diffusers_own_decode_without_tiles(
    teacher: Callable[[str], Teacher], name: str, latent_frames: int
) -> None:
    small = teacher(name)
    latents = small.encode(clip(small.spec, latent_frames))
    with torch.no_grad():
        assert torch.equal(small.decode(latents), small.vae.decode(latents).sample)


@pytest.mark.parametrize("latent_frames", [2, 4])
def test_cogvideox_drops_the_repeated_first_frames_of_an_even_clip(
    teacher: Callable[[str], Teacher], latent_frames: int
) -> None:
    cog = teacher("cogvideox")
    latents = cog.encode(clip(cog.spec, latent_frames))
    with torch.no_grad():
        theirs = cog.vae.decode(latents).sample
    assert theirs.shape[2] == 4 * latent_frames
    assert torch.equal(theirs[:, :, :3], theirs[:, :, 3:4].expand(-1, -1, 3, -1, -1))
    assert torch.equal(cog.decode(latents), theirs[:, :, 3:])


def test_long_hunyuan_clips_are_encoded_whole(teacher: Callable[[str], Teacher]) -> None:
    hunyuan = teacher("hunyuan")
    frames = clip(hunyuan.spec, 8)
    assert frames.shape[2] > hunyuan.vae.tile_sample_min_num_frames  # diffusers would blend stretches
    with torch.no_grad():
        moments = hunyuan.vae.quant_conv(hunyuan.vae.encoder(frames))
    assert torch.equal(hunyuan.encode(frames), moments[:, : hunyuan.spec.channels])


@pytest.mark.parametrize("latent_frames", [1, 4, 5])
@pytest.mark.parametrize("name", FAMILIES)
def test_features_cover_the_whole_clip_under_the_documented_names(
    teacher: Callable[[str], Teacher], name: str, latent_frames: int
) -> None:
    small = teacher(name)
    latents = small.encode(clip(small.spec, latent_frames, batch=2))
    frames, features = small.decode_with_features(latents)
    assert torch.equal(frames, small.decode(latents))
    blocks = len(small.vae.decoder.up_blocks)
    assert list(features) == ["mid_block", *(f"up_block_{i}" for i in range(blocks))] == list(small.taps)
    assert features["mid_block"].shape[2:] == latents.shape[2:]
    lengths = {(feature.shape[2], feature.shape[0], feature.ndim) for feature in features.values()}
    ratios = (1, 2, 4)
    assert lengths == {(ratio * (latent_frames - 1) + 1, 2, 5) for ratio in ratios}
    assert features[f"up_block_{blocks - 1}"].shape[2] == frames.shape[2]


@pytest.mark.parametrize("name", ["cogvideox", "wan"])
def test_features_of_chunked_decoders_are_in_order_of_time(teacher: Callable[[str], Teacher], name: str) -> None:
    small = teacher(name)
    latents = small.encode(clip(small.spec, 7))
    _, long = small.decode_with_features(latents)
    _, short = small.decode_with_features(latents[:, :, :3])  # causal, and the same chunks
    for tap, feature in short.items():
        assert torch.equal(long[tap][:, :, : feature.shape[2]], feature), tap


def test_features_are_the_outputs_of_the_blocks(teacher: Callable[[str], Teacher]) -> None:
    ltx = teacher("ltx")
    latents = ltx.encode(clip(ltx.spec, 2))
    _, features = ltx.decode_with_features(latents)
    with torch.no_grad():
        hidden = ltx.vae.decoder.mid_block(ltx.vae.decoder.conv_in(latents))
        assert torch.equal(features["mid_block"], hidden)
        assert torch.equal(features["up_block_0"], ltx.vae.decoder.up_blocks[0](hidden))


def test_hooks_are_removed_when_decoding_fails(
    teacher: Callable[[str], Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    ltx = teacher("ltx")

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ltx.vae.decoder.up_blocks[1], "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        ltx.decode_with_features(torch.zeros(1, ltx.spec.channels, 1, 2, 2))
    assert not any(module._forward_hooks for module in ltx.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_teacher_is_frozen_and_stays_in_evaluation_mode(teacher: Callable[[str], Teacher], name: str) -> None:
    small = teacher(name)
    assert small.train() is small
    assert not any(module.training for module in small.modules())
    assert not any(parameter.requires_grad for parameter in small.parameters())
    frames = clip(small.spec, 1).requires_grad_()
    latents = small.encode(frames)
    assert not latents.requires_grad
    assert not small.decode(latents.requires_grad_()).requires_grad


@pytest.mark.parametrize("name", FAMILIES)
def test_decoder_module_exports_and_computes_the_same(teacher: Callable[[str], Teacher], name: str) -> None:
    small = teacher(name)
    latents = small.encode(clip(small.spec, 2))
    decoder = small.decoder_module()
    assert not any(key.startswith("encoder") for key in decoder.state_dict())
    exported = torch.export.export(decoder, (latents,))
    torch.testing.assert_close(exported.module()(latents), small.decode(latents), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [WAN21_CONFIG, WAN22_CONFIG], ids=["wan 2.1", "wan 2.2"])
@pytest.mark.parametrize("latent_frames", [1, 4])
def test_wans_declared_layers_are_its_chunks_and_stream_exactly(
    config: dict[str, Any], latent_frames: int, save_vae: Callable[..., Path]
) -> None:
    wan = load_teacher("wan", save_vae("wan", **config), dtype=torch.float64)
    decoder: Any = wan.decoder_module()
    latents = torch.randn(wan.spec.latent_shape(frames=4 * latent_frames - 3, height=16, width=24)).double()
    with torch.no_grad():
        chunks = decoder.chunk_by_chunk(latents)
        assert decoder.spec == wan.spec
        assert (decoder(latents) - chunks).abs().max() < 1e-10
    for strips in (1, 2):
        streamed = torch.cat(list(decoder.stream(latents, strips=strips)), dim=2)
        assert (streamed - chunks).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("method", "shape", "dtype", "message"),
    [
        ("encode", (3, 5, 16, 16), torch.float32, r"\(3, 5, 16, 16\).*\(batch, 3, time, height, width\)"),
        ("encode", (1, 4, 5, 16, 16), torch.float32, r"\(1, 4, 5, 16, 16\).*\(batch, 3,"),
        ("encode", (1, 3, 0, 16, 16), torch.float32, "none of them empty"),
        ("encode", (1, 3, 6, 16, 16), torch.float32, r"frames=6 is not 4k\+1 \(nearest: 5 and 9\)"),
        ("encode", (1, 3, 5, 16, 20), torch.float32, "width=20 is not a multiple of 8"),
        ("encode", (1, 3, 5, 16, 16), torch.uint8, r"torch\.uint8.*torch\.float32"),
        ("decode", (1, 16, 2, 2, 2), torch.float32, r"\(1, 16, 2, 2, 2\).*\(batch, 6,"),
        ("decode_with_features", (6, 2, 2, 2), torch.float32, r"\(6, 2, 2, 2\).*\(batch, 6,"),
    ],
)
def test_wrong_tensors_are_refused_with_the_given_and_the_allowed(
    teacher: Callable[[str], Teacher], method: str, shape: tuple[int, ...], dtype: torch.dtype, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        getattr(teacher("ltx"), method)(torch.zeros(shape, dtype=dtype))


def test_same_latent_space_is_compatible() -> None:
    check_compatible(LatentSpec(16, 8, 4), LatentSpec(16, 8, 4))


def test_different_latent_spaces_are_refused_with_both_values_of_each_field() -> None:
    with pytest.raises(ModelError) as refusal:
        check_compatible(TEACHERS["ltx"].spec, LatentSpec(16, 8, 4, first_frame_alone=False))
    for part in (
        "latent channels: 128 and 16",
        "spatial compression: 32 and 8",
        "temporal compression: 8 and 4",
        "frame rule: 8k+1 and 4k",
    ):
        assert part in str(refusal.value)


@pytest.mark.parametrize(("name", "scaling"), [("hunyuan", 0.476986), ("cogvideox", 1.15258426)])
def test_latent_statistics_are_those_of_the_configuration(
    name: str, scaling: float, teacher: Callable[[str], Teacher]
) -> None:
    statistics = teacher(name).statistics
    assert statistics is not None
    assert statistics.scaling == scaling


def test_latent_statistics_that_ltx_keeps_with_its_weights_are_found(teacher: Callable[[str], Teacher]) -> None:
    ltx = teacher("ltx")
    assert ltx.statistics is None  # zeros and ones, as before training
    del ltx.statistics
    ltx.vae.latents_mean[0], ltx.vae.latents_std[0] = 0.5, 2.0
    assert ltx.statistics is not None
    assert (ltx.statistics.mean[0], ltx.statistics.std[0]) == (0.5, 2.0)
