"""HunyuanVideo (Tencent, arXiv 2412.03603)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..latents import LatentSpec
from .base import STANDARD_TAPS, ClipDecoder, TeacherInfo


class HunyuanDecoder(ClipDecoder):
    """One piece, where diffusers by default blends overlapping stretches of clips longer than 16 frames. Its
    attention spans the clip: memory grows with the square of T*h*w."""

    post_quant_conv: nn.Module

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


TEACHER = TeacherInfo(
    name="hunyuan",
    diffusers_class="AutoencoderKLHunyuanVideo",
    default_source="hunyuanvideo-community/HunyuanVideo",
    licence="Tencent Hunyuan Community License (not for use in the EU, the UK and South Korea)",
    licence_url="https://huggingface.co/tencent/HunyuanVideo/blob/main/LICENSE",
    spec=LatentSpec(channels=16, spatial=8, temporal=4),
    scaling="z * scaling_factor (0.476986)",
    decoder=HunyuanDecoder,
    taps=STANDARD_TAPS,
)
