"""The image decoder of Stable Diffusion, SDXL and FLUX: diffusers' `AutoencoderKL`, exported and not trained.

The modules are diffusers' own, under its names: ResNet blocks with group norm, one attention in the middle, nearest
upsampling. Tensors are NCHW. Source: arXiv 2112.10752; diffusers 0.42, models/autoencoders/autoencoder_kl.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
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

CLASS_NAME = "AutoencoderKL"

# Keys of the released JSON that say nothing about the decoder's function.
_IGNORED = ("in_channels", "down_block_types", "sample_size", "force_upcast", "use_quant_conv")

# Names of the attention's weights in checkpoints from before diffusers 0.18.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """Architecture of one decoder, in the released JSON's own keys.

    Attributes:
        latent_channels: channels of the latents.
        block_out_channels: widths, in encoder order: the last one decodes first. Each but the first doubles height
            and width.
        layers_per_block: ResNet blocks of a width in the encoder; the decoder has one more.
        norm_num_groups: groups of the group norms.
        act_fn: activation.
        use_post_quant_conv: whether a 1x1 convolution comes first.
        mid_block_add_attention: whether the middle block has its attention.
        up_block_types: one `UpDecoderBlock2D` per width; empty for as many as there are widths.
        out_channels: channels of the images.
        scaling_factor, shift_factor, latents_mean, latents_std: how a diffusion model normalises the latents.
    """

    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int = 1
    norm_num_groups: int = 32
    act_fn: str = "silu"
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    up_block_types: tuple[str, ...] = ()
    out_channels: int = 3
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.up_block_types and len(self.up_block_types) != len(self.block_out_channels):
            raise ModelError(
                f"up_block_types has {len(self.up_block_types)} names and block_out_channels "
                f"{len(self.block_out_channels)} widths: one of each is needed for every block."
            )

    @property
    def spec(self) -> LatentSpec:
        """The latent space that the decoder takes."""
        return LatentSpec(self.latent_channels, 2 ** (len(self.block_out_channels) - 1), 1, image=True)

    def to_json(self) -> str:
        """The configuration as the released JSON writes it."""
        return json.dumps({"_class_name": CLASS_NAME, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "the configuration") -> AutoencoderKLConfig:
        """Read a released or saved configuration. Unknown keys and unsupported values raise ModelError."""
        known = {key: value for key, value in data.items() if value is not None}
        return cls(**read_fields(cls, known, where, CLASS_NAME, ignored=_IGNORED))


class AutoencoderKLDecoder(Decoder):
    """Latents (N, C, H', W') to RGB images (N, 3, H, W), nominally in [-1, 1]: diffusers' `decode(z).sample`."""

    weights_prefix = ""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        from ..teachers._diffusers import vae_part

        super().__init__()
        self.config = config
        self.decoder: nn.Module = vae_part("Decoder")(
            in_channels=config.latent_channels,
            out_channels=config.out_channels,
            up_block_types=config.up_block_types or ("UpDecoderBlock2D",) * len(config.block_out_channels),
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_num_groups,
            act_fn=config.act_fn,
            mid_block_add_attention=config.mid_block_add_attention,
        )
        if config.use_post_quant_conv:
            self.post_quant_conv: nn.Module = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes."""
        return self.config.spec

    @property
    def statistics(self) -> LatentStatistics | None:
        """How a diffusion model normalises these latents."""
        return LatentStatistics.from_config(
            {
                "scaling_factor": self.config.scaling_factor,
                "shift_factor": self.config.shift_factor,
                "latents_mean": self.config.latents_mean or None,
                "latents_std": self.config.latents_std or None,
            }
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, C, H', W') to images (N, 3, H, W); sizes are not checked."""
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


def own_weights(state: Mapping[str, Tensor], config: AutoencoderKLConfig) -> dict[str, Tensor]:
    """The decoder's weights of a whole autoencoder's dict, its attention by today's names."""
    own = {}
    for name, value in state.items():
        if name.startswith(("encoder.", "quant_conv.")):
            continue
        renamed = re.sub(
            r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{_OLD_NAMES[m[2]]}.", name
        )
        own[renamed] = value
    return own


_WIDE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2)

FAMILY = Family(
    name="autoencoder-kl",
    title="AutoencoderKL (arXiv 2112.10752): image decoders of Stable Diffusion, SDXL and FLUX",
    config=AutoencoderKLConfig,
    decoder=AutoencoderKLDecoder,
    presets={
        "sd15": AutoencoderKLConfig(latent_channels=4, **_WIDE),  # type: ignore[arg-type]
        "sdxl": AutoencoderKLConfig(latent_channels=4, scaling_factor=0.13025, **_WIDE),  # type: ignore[arg-type]
        "flux": AutoencoderKLConfig(
            latent_channels=16,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            **_WIDE,  # type: ignore[arg-type]
        ),
    },
    class_names=(CLASS_NAME,),
    own_weights=own_weights,
)
