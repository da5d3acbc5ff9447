"""CogVideoX (Zhipu AI, arXiv 2408.06072)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ..latents import LatentSpec
from .base import STANDARD_TAPS, ClipDecoder, TeacherInfo


class CogVideoXDecoder(ClipDecoder):
    """In chunks of two latent frames, as diffusers decodes and as the model was trained: its norms take
    statistics per chunk, so other chunks give other frames.

    Whether a chunk begins the clip is told from its length alone: the first chunk of an odd clip has three
    latent frames (or one), and its first one becomes one frame. In an even clip, the first latent frame is
    expanded like all others; its causal convolutions then give equal frames, of which the last is kept.
    """

    post_quant_conv: nn.Module

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv or nn.Identity()
        self.decoder = vae.decoder

    def whole_clip(self, chunks: list[Tensor], latent_frames: int) -> Tensor:
        clip = super().whole_clip(chunks, latent_frames)
        if latent_frames % 2:
            return clip
        return clip[:, :, clip.shape[2] // latent_frames - 1 :]

    def forward(self, latents: Tensor) -> Tensor:
        count = latents.shape[2]
        latents = self.post_quant_conv(latents)
        cache = None
        chunks = []
        for start, stop in pairwise([0, *range(min(count, 2 + count % 2), count + 1, 2)]):
            frames, cache = self.decoder(latents[:, :, start:stop], conv_cache=cache)
            chunks.append(frames)
        return self.whole_clip(chunks, count)


TEACHER = TeacherInfo(
    name="cogvideox",
    diffusers_class="AutoencoderKLCogVideoX",
    default_source="zai-org/CogVideoX-2b",
    licence="Apache-2.0 (CogVideoX-2b with its VAE; the 5b and 1.5 models: CogVideoX License)",
    licence_url="https://huggingface.co/zai-org/CogVideoX-2b/blob/main/LICENSE",
    spec=LatentSpec(channels=16, spatial=8, temporal=4),
    scaling="z * scaling_factor (1.15258426 in 2b, 0.7 in 5b)",
    decoder=CogVideoXDecoder,
    taps=STANDARD_TAPS,
)
