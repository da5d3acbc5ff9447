"""Configuration of the Turbo-VAED decoder for Wan 2.2, in the released JSON's own keys."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError
from ...fields import length_faults, read_fields
from ...latents import LatentSpec

CLASS_NAME = "TurboVAED"

# Keys that say nothing about the decoder's function: the encoder's side, heads that only training uses, and ratios
# that follow from the blocks.
_IGNORED_KEYS = (
    "in_channels",
    "layers_per_block",
    "spatio_temporal_scaling",
    "spatial_compression_ratio",
    "temporal_compression_ratio",
    "aligned_feature_projection_mode",
    "aligned_feature_projection_dim",
    "aligned_blks_indices",
)

# Keys that would change the function; the only value of each that the public code takes.
_FIXED_KEYS: dict[str, tuple[Any, ...]] = {"patch_size_t": (1,), "patch_size": (2,)}


@dataclass(frozen=True)
class TurboVAEDWanConfig:
    """Architecture of one decoder. Sequences are in encoder order, as released: the last entry decodes first.

    Attributes:
        latent_channels: channels of the latents.
        decoder_block_out_channels: width of each up block.
        decoder_layers_per_block: ResNet blocks of each up block and, last, of the mid block.
        decoder_spatio_temporal_scaling: whether each up block upsamples.
        decoder_spatio_only: whether an upsampling block leaves time as it is.
        decoder_is_dw_conv: depthwise-separable convolutions in each up block and, last, in the mid block.
        out_channels: channels of the frames.
        decoder_dw_kernel_size: kernel of the depthwise convolutions, all three axes.
        resnet_norm_eps: epsilon of the norm before a convolutional shortcut.
        scaling_factor: how a diffusion model scales the latents; `decode` takes them unscaled.
        use_unpatchify: whether the last convolution makes the patches of 2x2 pixels, or a convolution and a pixel
            shuffle come before it.
        decoder_causal: frames depend on no later latent frame. The public code has the key and refuses it.
        first_chunk_size, step_size: latent frames of the first window and of each later one that the public code
            decodes long clips in (`TurboVAEDWanDecoder.decode_windows`).
    """

    latent_channels: int
    decoder_block_out_channels: tuple[int, ...]
    decoder_layers_per_block: tuple[int, ...]
    decoder_spatio_temporal_scaling: tuple[bool, ...]
    decoder_spatio_only: tuple[bool, ...]
    decoder_is_dw_conv: tuple[bool, ...] = (False, False, False, False, False)
    out_channels: int = 3
    decoder_dw_kernel_size: int = 3
    resnet_norm_eps: float = 1e-6
    scaling_factor: float = 1.0
    use_unpatchify: bool = False
    decoder_causal: bool = False
    first_chunk_size: int = 3
    step_size: int = 5

    def __post_init__(self) -> None:
        blocks = len(self.decoder_block_out_channels)
        lengths = {
            "decoder_spatio_temporal_scaling": blocks,
            "decoder_spatio_only": blocks,
            "decoder_layers_per_block": blocks + 1,
            "decoder_is_dw_conv": blocks + 1,
        }
        faults = length_faults(self, lengths, f"{blocks} blocks")
        if not blocks:
            faults.append("decoder_block_out_channels is empty")
        elif not self.use_unpatchify and self.decoder_block_out_channels[0] % 4:
            faults.append(
                f"decoder_block_out_channels[0]={self.decoder_block_out_channels[0]} is not a multiple of 4, which "
                "use_unpatchify false needs"
            )
        if self.decoder_dw_kernel_size % 2 == 0:
            faults.append(f"decoder_dw_kernel_size is {self.decoder_dw_kernel_size}; it must be odd")
        for name in ("first_chunk_size", "step_size"):
            if getattr(self, name) < 1:
                faults.append(f"{name} is {getattr(self, name)}; it must be at least 1")
        if faults:
            raise ModelError("Impossible configuration of Turbo-VAED for Wan: " + "; ".join(faults) + ".")

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes."""
        stages = list(zip(self.decoder_spatio_temporal_scaling, self.decoder_spatio_only))
        spatial = 2 * 2 ** sum(scales for scales, _ in stages)
        temporal = 2 ** sum(scales and not only for scales, only in stages)
        return LatentSpec(self.latent_channels, spatial, temporal)

    def to_json(self) -> str:
        """The configuration as the released JSON writes it."""
        body = {"_class_name": CLASS_NAME, **dataclasses.asdict(self), "patch_size": 2, "patch_size_t": 1}
        return json.dumps(body, indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "the configuration") -> TurboVAEDWanConfig:
        """Read a released or saved configuration. Unknown keys and unsupported values raise ModelError."""
        title = "Turbo-VAED for Wan"
        return cls(**read_fields(cls, data, where, title, ignored=_IGNORED_KEYS, fixed=_FIXED_KEYS))


PRESETS: dict[str, TurboVAEDWanConfig] = {
    # The values of TurboV3-Wan22-TinyShallow_7_7.json, which goes with GAIR-NLP/daVinci-MagiHuman.
    "wan22": TurboVAEDWanConfig(
        latent_channels=48,
        decoder_block_out_channels=(64, 128, 256, 512),
        decoder_layers_per_block=(2, 2, 2, 3, 3),
        decoder_spatio_temporal_scaling=(False, True, True, True),
        decoder_spatio_only=(False, True, False, False),
        use_unpatchify=True,
        first_chunk_size=7,
        step_size=7,
    ),
}
