"""Wan 2.1 and 2.2 (Alibaba, arXiv 2503.20314)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ..latents import LatentSpec
from ..layers import Layer
from ..streaming import stream_frames
from .base import STANDARD_TAPS, ClipDecoder, TeacherInfo
from .wan_layers import layers_of


class WanDecoder(ClipDecoder):
    """A whole clip at once, from the layers that it declares. `chunk_by_chunk` decodes one latent frame at a time
    as diffusers does, with the same frames up to rounding. Frames are clamped to [-1, 1], as diffusers does."""

    post_quant_conv: nn.Module

    def __init__(self, vae: Any) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder
        self.patch_size = vae.config.patch_size or 1
        self.caches = sum(isinstance(module, WanCausalConv3d) for module in self.decoder.modules())
        doubled = vae.config.temperal_downsample
        self.spec = LatentSpec(
            channels=vae.config.z_dim, spatial=2 ** len(doubled) * self.patch_size, temporal=2 ** sum(doubled)
        )

    streams = True

    def layers(self) -> dict[str, Layer]:
        """What the decoder computes, by the names of its modules."""
        return layers_of(self.decoder, self.post_quant_conv, self.patch_size)  # type: ignore[arg-type]

    def stream(self, latents: Tensor | Iterable[Tensor], *, chunk: int = 1, strips: int = 1) -> Iterator[Tensor]:
        """Decode piece by piece; see `handheld.models.Decoder.stream`."""
        return stream_frames(self, latents, chunk, strips)

    def forward(self, latents: Tensor) -> Tensor:
        for layer in self.layers().values():
            latents = layer(latents)
        return latents

    def chunk_by_chunk(self, latents: Tensor) -> Tensor:
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        latents = self.post_quant_conv(latents)
        cache: list[Tensor | str | None] = [None] * self.caches
        chunks = [
            self.decoder(latents[:, :, i : i + 1], feat_cache=cache, feat_idx=[0], first_chunk=i == 0)
            for i in range(latents.shape[2])
        ]
        frames = unpatchify(self.whole_clip(chunks, latents.shape[2]), self.patch_size)
        return frames.clamp(-1.0, 1.0)


TEACHER = TeacherInfo(
    name="wan",
    diffusers_class="AutoencoderKLWan",
    default_source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    licence="Apache-2.0",
    licence_url="https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    # Wan 2.2 TI2V-5B has 48 channels and 16x16x4.
    spec=LatentSpec(channels=16, spatial=8, temporal=4),
    scaling="(z - latents_mean) / latents_std; per channel, in config.json",
    decoder=WanDecoder,
    taps=STANDARD_TAPS,
)
