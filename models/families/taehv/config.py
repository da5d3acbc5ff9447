"""Configuration of the TAEHV decoder, in the arguments that the public code has."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError
from ...fields import read_fields
from ...latents import LatentSpec

CLASS_NAME = "TAEHV"

# Stages of the decoder, each of which may double the frames and the height and width.
STAGES = 3


@dataclass(frozen=True)
class TAEHVConfig:
    """Architecture of one decoder. Sequences are in the order in which the decoder runs its stages.

    Attributes:
        latent_channels: channels of the latents.
        patch_size: the last step is a pixel shuffle by this much.
        arch_variant: `base`, or `super` with depthwise 7x7 convolutions and pixel shuffles.
        channels: width of the first stage, of each later one and of the last convolution's input.
        layers: memory blocks of each stage.
        decoder_time_upscale: whether each stage doubles the frames.
        decoder_space_upscale: whether each stage doubles height and width.
        normalised_latents: whether it takes latents as a diffusion model gives them, which every released
            checkpoint does. Otherwise it takes them as the VAE's encoder emits them, as the other families do.
    """

    latent_channels: int
    patch_size: int = 1
    arch_variant: str = "base"
    channels: tuple[int, ...] = (256, 128, 64, 64)
    layers: int = 3
    decoder_time_upscale: tuple[bool, ...] = (False, True, True)
    decoder_space_upscale: tuple[bool, ...] = (True, True, True)
    normalised_latents: bool = True

    def __post_init__(self) -> None:
        faults = []
        if self.arch_variant not in ("base", "super"):
            faults.append(f"arch_variant is {self.arch_variant!r}; base and super exist")
        for name in ("latent_channels", "patch_size", "layers"):
            if getattr(self, name) < 1:
                faults.append(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, wanted in (
            ("channels", STAGES + 1),
            ("decoder_time_upscale", STAGES),
            ("decoder_space_upscale", STAGES),
        ):
            if len(getattr(self, name)) != wanted:
                faults.append(f"{name} has {len(getattr(self, name))} entries, {wanted} needed")
        if any(width < 1 for width in self.channels):
            faults.append(f"channels is {list(self.channels)}; each must be at least 1")
        if faults:
            raise ModelError("Impossible TAEHV configuration: " + "; ".join(faults) + ".")

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes. It gives fewer frames or pixels where a stage doubles none."""
        spatial = self.patch_size * 2 ** sum(self.decoder_space_upscale)
        return LatentSpec(self.latent_channels, spatial, 2 ** sum(self.decoder_time_upscale))

    def to_json(self) -> str:
        """The configuration as JSON."""
        return json.dumps({"_class_name": CLASS_NAME, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "the configuration") -> TAEHVConfig:
        """Read a saved configuration. Unknown keys and values of another type raise ModelError."""
        return cls(**read_fields(cls, data, where, "TAEHV"))


_LTX: dict[str, Any] = dict(latent_channels=128, patch_size=4, decoder_time_upscale=(True, True, True))

# madebyollin/taehv at 1f14a56. The names are those of its checkpoints.
PRESETS: dict[str, TAEHVConfig] = {
    "taehv": TAEHVConfig(latent_channels=16),
    "taew2_1": TAEHVConfig(latent_channels=16),
    "taew2_2": TAEHVConfig(latent_channels=48, patch_size=2),
    "taehv1_5": TAEHVConfig(latent_channels=32, patch_size=2),
    "taeltx_2": TAEHVConfig(**_LTX),
    "taew2_2_super": TAEHVConfig(
        latent_channels=48, patch_size=2, arch_variant="super", channels=(512, 256, 128, 64)
    ),
    "taehv1_5_super": TAEHVConfig(
        latent_channels=32, patch_size=2, arch_variant="super", channels=(512, 256, 128, 64)
    ),
}
