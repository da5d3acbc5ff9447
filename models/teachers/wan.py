"""Wan 2.1 and 2.2 (Alibaba, arXiv 2503.20314)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..latents import LatentSpec
from .base import STANDARD_TAPS, ClipDecoder, TeacherInfo


class WanDecoder(ClipDecoder):
    """One latent frame at a time: each causal convolution keeps its last two inputs in a cache. Frames are
    clamped to [-1, 1], as diffusers does."""

    post_quant_conv: nn.Module

    def __init__(self, vae: Any) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder
        self.patch_size = vae.config.patch_size or 1
        self.caches = sum(isinstance(module, WanCausalConv3d) for module in self.decoder.modules())

    def forward(self, latents: Tensor) -> Tensor:
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
