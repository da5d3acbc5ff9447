"""Configuration of the Turbo-VAED decoder, in the released JSON's own keys."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ...fields import length_faults, read_fields
from ...latents import LatentSpec
from ...reading import read_json

# Keys of the released JSON (hustvl/Turbo-VAED, configs/) that say nothing about the decoder's function:
# the encoder side, and the heads that only training uses.
_IGNORED_KEYS = {
    "in_channels",
    "layers_per_block",
    "spatio_temporal_scaling",
    "spatial_compression_ratio",
    "temporal_compression_ratio",
    "upsample_residual",  # stored by the released upsampler and never read
    "aligned_feature_projection_mode",
    "aligned_feature_projection_dim",
    "aligned_blks_indices",
}

# Keys that would change the function; the value listed is the only one that any release uses.
_FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "patch_size_t": (1,),
    "timestep_conditioning": (False,),
    "decoder_inject_noise": ((False,) * 5,),
    "upsample_factor": ((1,) * 4,),
}


@dataclass(frozen=True)
class TurboVAEDConfig:
    """Architecture of one decoder. Sequences are in encoder order, as released: the last entry decodes first.

    Attributes:
        latent_channels: channels of the latents.
        out_channels: channels of the frames.
        decoder_block_out_channels: width of each up block.
        decoder_layers_per_block: ResNet blocks of each up block and, last, of the mid block.
        decoder_spatio_temporal_scaling: whether each up block upsamples.
        decoder_spatio_only: whether an upsampling block leaves time as it is.
        decoder_is_dw_conv: depthwise-separable convolutions in each up block and, last, in the mid block.
        decoder_dw_kernel_size: kernel of the depthwise convolutions, all three axes.
        patch_size: 1, 2 or 4; the head upsamples by this much, frame by frame.
        resnet_norm_eps: epsilon of the LayerNorm before a convolutional shortcut.
        scaling_factor: how a diffusion model scales the latents (`LatentStatistics`); `decode` takes them unscaled.
        decoder_causal: frames depend on no later latent frame. The released flag leaves its depthwise
            convolutions non-causal; here all of them are.
        is_video_dc_ae: upsampling keeps every frame (`4k` instead of `4k+1` frames).
    """

    latent_channels: int
    decoder_block_out_channels: tuple[int, ...]
    decoder_layers_per_block: tuple[int, ...]
    decoder_is_dw_conv: tuple[bool, ...]
    out_channels: int = 3
    decoder_spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False)
    decoder_spatio_only: tuple[bool, ...] = (False, False, False, False)
    decoder_dw_kernel_size: int = 3
    patch_size: int = 4
    resnet_norm_eps: float = 1e-6
    scaling_factor: float = 1.0
    decoder_causal: bool = False
    is_video_dc_ae: bool = False

    def __post_init__(self) -> None:
        blocks = len(self.decoder_block_out_channels)
        lengths = {
            "decoder_spatio_temporal_scaling": blocks,
            "decoder_spatio_only": blocks,
            "decoder_layers_per_block": blocks + 1,
            "decoder_is_dw_conv": blocks + 1,
        }
        faults = length_faults(self, lengths, f"{blocks} blocks")
        if self.patch_size not in (1, 2, 4):
            faults.append(f"patch_size is {self.patch_size}; 1, 2 and 4 exist")
        elif self.decoder_block_out_channels and self.decoder_block_out_channels[0] % self.patch_size**2:
            faults.append(
                f"decoder_block_out_channels[0]={self.decoder_block_out_channels[0]} is not a multiple of "
                f"{self.patch_size**2}, which patch_size {self.patch_size} needs"
            )
        if self.decoder_dw_kernel_size % 2 == 0:
            faults.append(f"decoder_dw_kernel_size is {self.decoder_dw_kernel_size}; it must be odd")
        if faults:
            raise ModelError("Impossible Turbo-VAED configuration: " + "; ".join(faults) + ".")

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes, from what its blocks really do.

        The released JSON's `spatio_temporal_scaling` counts a spatial-only stage as temporal too and so
        overstates the temporal compression of three of the four variants; it is not used here.
        """
        stages = list(zip(self.decoder_spatio_temporal_scaling, self.decoder_spatio_only))
        spatial = self.patch_size * 2 ** sum(scales for scales, _ in stages)
        temporal = 2 ** sum(scales and not only for scales, only in stages)
        return LatentSpec(self.latent_channels, spatial, temporal, first_frame_alone=not self.is_video_dc_ae)

    def to_json(self) -> str:
        """The configuration as the released JSON writes it."""
        body = {"_class_name": "AutoencoderKLTurboVAED", **dataclasses.asdict(self), "patch_size_t": 1}
        return json.dumps(body, indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "the configuration") -> TurboVAEDConfig:
        """Read a released or saved configuration. Unknown keys and unsupported values raise ModelError."""
        values = read_fields(cls, data, where, "Turbo-VAED", ignored=_IGNORED_KEYS, fixed=_FIXED_KEYS)
        return cls(**values)

    @classmethod
    def from_json_file(cls, path: str | Path) -> TurboVAEDConfig:
        """Read a JSON configuration. Raises ModelError naming the file and what is wrong with it."""
        return cls.from_dict(read_json(Path(path)), where=str(path))


_WIDE: dict[str, Any] = dict(
    decoder_block_out_channels=(16, 32, 256, 512),
    decoder_layers_per_block=(5, 4, 4, 4, 5),
    decoder_spatio_only=(True, False, False, False),
    decoder_is_dw_conv=(False, False, False, True, True),
    decoder_dw_kernel_size=5,
    latent_channels=16,
    patch_size=1,
)

PRESETS: dict[str, TurboVAEDConfig] = {
    # The four released configurations (hustvl/Turbo-VAED at 9268488, configs/).
    "ltx": TurboVAEDConfig(
        latent_channels=128,
        decoder_block_out_channels=(64, 128, 256, 512),
        decoder_layers_per_block=(3, 2, 3, 1, 1),
        decoder_is_dw_conv=(False, False, False, True, True),
        decoder_dw_kernel_size=5,
    ),
    "hunyuan": TurboVAEDConfig(**_WIDE),
    "cogvideox": TurboVAEDConfig(**_WIDE),
    "dc": TurboVAEDConfig(
        latent_channels=128,
        decoder_block_out_channels=(64, 128, 256, 512),
        decoder_layers_per_block=(4, 3, 3, 3, 4),
        decoder_spatio_only=(True, False, False, False),
        decoder_is_dw_conv=(False, False, False, True, True),
        decoder_dw_kernel_size=5,
        is_video_dc_ae=True,
    ),
    # For the embedded teacher: the released structure in small. The low-resolution half is depthwise.
    "tiny": TurboVAEDConfig(
        latent_channels=48,
        decoder_block_out_channels=(64, 64),
        decoder_layers_per_block=(1, 1, 2),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_spatio_only=(False, False),
        decoder_is_dw_conv=(False, True, True),
        decoder_dw_kernel_size=5,
    ),
}
