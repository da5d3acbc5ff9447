"""LTX-Video (Lightricks, arXiv 2501.00103): high compression, the last denoising step left to the decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import ModelError
from ..latents import LatentSpec
from .base import STANDARD_TAPS, ClipDecoder, TeacherInfo


class LTXDecoder(ClipDecoder):
    """One piece. Decoders conditioned on a timestep (0.9.1 and later) run at timestep 0: clean latents."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        if any(vae.config.decoder_inject_noise):
            raise ModelError(
                "its decoder adds random noise (decoder_inject_noise), so it has no fixed output to distil; "
                "the VAEs of LTX-Video 0.9 and of 0.9.5 and later do not"
            )
        self.decoder = vae.decoder
        self.timed = vae.config.timestep_conditioning

    def forward(self, latents: Tensor) -> Tensor:
        timestep = latents.new_zeros(latents.shape[0]) if self.timed else None
        return self.decoder(latents, timestep)


TEACHER = TeacherInfo(
    name="ltx",
    diffusers_class="AutoencoderKLLTXVideo",
    default_source="Lightricks/LTX-Video",
    # The hub repository holds several releases, each with its own licence file; its `vae` folder is 0.9's.
    licence="Lightricks' own, per release: 0.9 and 0.9.1: License.txt; 0.9.5: OpenRAIL-M; later: LTXV Open Weights",
    licence_url="https://huggingface.co/Lightricks/LTX-Video",
    spec=LatentSpec(channels=128, spatial=32, temporal=8),
    scaling="(z - latents_mean) / latents_std * scaling_factor; per channel, stored with the weights",
    decoder=LTXDecoder,
    taps=STANDARD_TAPS,
)
