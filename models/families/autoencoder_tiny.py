"""TAESD, small image decoders for Stable Diffusion and FLUX: diffusers' `AutoencoderTiny`. Only exported.

The modules are diffusers' own, under its names: convolutions, ReLU and nearest upsampling. Tensors are NCHW.
Source: madebyollin/taesd; diffusers 0.42, models/autoencoders/autoencoder_tiny.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..decoder import Decoder
from ..errors import ModelError
from ..fields import read_fields
from ..latents import LatentSpec
from ..statistics import LatentStatistics
from .base import Family

CLASS_NAME = "AutoencoderTiny"

# Keys of the released JSON that say nothing about the decoder's function.
_IGNORED = (
    "in_channels",
    "encoder_block_out_channels",
    "num_encoder_blocks",
    "latent_magnitude",
    "latent_shift",
    "force_upcast",
    "block_out_channels",
)


@dataclass(frozen=True)
class AutoencoderTinyConfig:
    """Architecture of one decoder, in the released JSON's own keys.

    Attributes:
        latent_channels: channels of the latents.
        decoder_block_out_channels: width of each stage; they must be equal.
        num_decoder_blocks: blocks of each stage. Each stage but the last enlarges height and width.
        act_fn: activation.
        upsample_fn: how pictures are enlarged.
        upsampling_scaling_factor: by how much a stage enlarges.
        out_channels: channels of the images.
        scaling_factor, shift_factor: how a diffusion model normalises the latents.
    """

    latent_channels: int = 4
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    act_fn: str = "relu"
    upsample_fn: str = "nearest"
    upsampling_scaling_factor: int = 2
    out_channels: int = 3
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        widths, blocks = len(self.decoder_block_out_channels), len(self.num_decoder_blocks)
        if widths != blocks:
            raise ModelError(
                f"decoder_block_out_channels has {widths} stages and num_decoder_blocks {blocks}: one "
                "number of each is needed for every stage."
            )

    @property
    def spec(self) -> LatentSpec:
        """The latent space that the decoder takes."""
        enlarged = self.upsampling_scaling_factor ** (len(self.num_decoder_blocks) - 1)
        return LatentSpec(self.latent_channels, enlarged, 1, image=True)

    def to_json(self) -> str:
        """The configuration as the released JSON writes it."""
        return json.dumps({"_class_name": CLASS_NAME, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "the configuration") -> AutoencoderTinyConfig:
        """Read a released or saved configuration. Unknown keys and unsupported values raise ModelError."""
        known = {key: value for key, value in data.items() if value is not None}
        return cls(**read_fields(cls, known, where, CLASS_NAME, ignored=_IGNORED))


class AutoencoderTinyDecoder(Decoder):
    """Latents (N, C, H', W') to RGB images (N, 3, H, W), nominally in [-1, 1]: diffusers' `decode(z).sample`."""

    weights_prefix = ""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        from ..teachers._diffusers import vae_part

        super().__init__()
        self.config = config
        self.decoder: nn.Module = vae_part("DecoderTiny")(
            in_channels=config.latent_channels,
            out_channels=config.out_channels,
            num_blocks=config.num_decoder_blocks,
            block_out_channels=config.decoder_block_out_channels,
            upsampling_scaling_factor=config.upsampling_scaling_factor,
            act_fn=config.act_fn,
            upsample_fn=config.upsample_fn,
        )

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes."""
        return self.config.spec

    @property
    def statistics(self) -> LatentStatistics | None:
        """How a diffusion model normalises these latents; none where it takes them as they are."""
        return LatentStatistics.from_config(dataclasses.asdict(self.config))

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, C, H', W') to images (N, 3, H, W); sizes are not checked."""
        return self.decoder(latents)


def own_weights(state: Mapping[str, Tensor], config: AutoencoderTinyConfig) -> dict[str, Tensor]:
    """The decoder's weights of a whole autoencoder's dict."""
    return {name: value for name, value in state.items() if not name.startswith("encoder.")}


FAMILY = Family(
    name="autoencoder-tiny",
    title="AutoencoderTiny (madebyollin/taesd): small image decoders of Stable Diffusion and FLUX",
    config=AutoencoderTinyConfig,
    decoder=AutoencoderTinyDecoder,
    presets={"taesd": AutoencoderTinyConfig(), "taef1": AutoencoderTinyConfig(latent_channels=16)},
    class_names=(CLASS_NAME,),
    own_weights=own_weights,
)
