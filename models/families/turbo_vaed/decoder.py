"""The Turbo-VAED decoder: latents of a frozen teacher encoder in, frames out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import ModelError
from ...layers import Layer, declared
from ..base import Family, FamilyTable, weights_except
from ..blocks import BlockDecoder
from ..loading import load_decoder, statistics_in
from .blocks import ChannelRMSNorm, Conv3d, FrameUpsampler, MidBlock, UpBlock
from .config import PRESETS, TurboVAEDConfig


class TurboVAEDecoder(BlockDecoder):
    """Small video decoder of depthwise-separable 3D convolutions and decoupled 3D pixel shuffles.

    Computes the function of the released `TurboVAEDDecoder3d` for the same weights (arXiv 2508.09136;
    hustvl/Turbo-VAED at 9268488), except that `decoder_causal` is causal everywhere.

    Latents are (N, C, T', H', W'), as the teacher's encoder emits them, not normalised for a diffusion model.
    Frames are (N, 3, T, H, W), RGB, nominally in [-1, 1], not clamped. `spec` relates the two sizes.
    """

    def __init__(self, config: TurboVAEDConfig) -> None:
        super().__init__()
        self.config = config
        causal = config.decoder_causal
        widths = config.decoder_block_out_channels[::-1]
        layers = config.decoder_layers_per_block[::-1]
        depthwise = config.decoder_is_dw_conv[::-1]
        scales = config.decoder_spatio_temporal_scaling[::-1]
        spatial_only = config.decoder_spatio_only[::-1]

        def conv(stage: int) -> dict[str, Any]:
            kernel = config.decoder_dw_kernel_size if depthwise[stage] else 3
            return dict(depthwise=depthwise[stage], kernel=kernel, eps=config.resnet_norm_eps, causal=causal)

        self.conv_in = Conv3d(config.latent_channels, widths[0], 3, causal)
        self.mid_block = MidBlock(widths[0], layers[0], **conv(0))
        self.up_blocks = nn.ModuleList(
            UpBlock(
                widths[max(i - 1, 0)],
                width,
                layers[i + 1],
                scales=scales[i],
                spatial_only=spatial_only[i],
                keep_first=config.is_video_dc_ae,
                **conv(i + 1),
            )
            for i, width in enumerate(widths)
        )
        self.norm = ChannelRMSNorm()
        width = widths[-1]
        if config.patch_size >= 2:
            self.upsampler2d_1 = FrameUpsampler(width)
            width //= 4
        if config.patch_size >= 4:
            self.upsampler2d_2 = FrameUpsampler(width)
            width //= 4
        self.conv_out = Conv3d(width, config.out_channels, 3, causal)

    def tail(self) -> list[Layer]:
        """The upsamplers of each frame and the last convolution."""
        upsamplers = [f"upsampler2d_{i}" for i in (1, 2) if self.config.patch_size >= 2 * i]
        return [declared(getattr(self, name), self.norm, F.silu) for name in (*upsamplers, "conv_out")]

    @classmethod
    def from_preset(cls, name: str, *, causal: bool = False) -> TurboVAEDecoder:
        """A randomly initialised decoder of a named architecture (`PRESETS`), in eval mode."""
        if name not in PRESETS:
            raise ModelError(f"No preset {name!r}; there are: {', '.join(PRESETS)}.")
        return cls(replace(PRESETS[name], decoder_causal=causal)).eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        config: TurboVAEDConfig | str | Path | None = None,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        local_files_only: bool = False,
    ) -> TurboVAEDecoder:
        """Load a decoder, in eval mode.

        Args:
            source: a folder with `config.json` and `diffusion_pytorch_model.safetensors`, a hub id of such
                a folder, or one checkpoint file (`.safetensors`, `.pth`, `.ckpt`) with the released
                state-dict names (`decoder.*` or the bare decoder; the released trainer's checkpoints too).
            config: a configuration, a preset's name or a released JSON file; needed for a checkpoint file
                that has no `config.json` beside it.
            subfolder: folder inside `source`.
            torch_dtype: dtype of the weights; as stored in fp32 by default.
            local_files_only: never ask the hub.

        Raises:
            ModelError: nothing usable at `source`, or weights that do not match the configuration exactly.
        """
        options: Any = dict(config=config, subfolder=subfolder, torch_dtype=torch_dtype)
        found = load_decoder(FamilyTable(FAMILY), source, local_files_only=local_files_only, **options)
        assert isinstance(found, cls)
        return found


FAMILY = Family(
    name="turbo-vaed",
    title="Turbo-VAED (arXiv 2508.09136): depthwise-separable 3D convolutions, decoupled pixel shuffles",
    config=TurboVAEDConfig,
    decoder=TurboVAEDecoder,
    presets=PRESETS,
    class_names=("AutoencoderKLTurboVAED",),
    # Beside the decoder: heads that only training uses, and latent statistics.
    own_weights=weights_except("aligned_feature_projection_heads.", "latents_mean", "latents_std"),
    statistics_of=statistics_in,
    student=True,
    causal=lambda config: replace(config, decoder_causal=True),
)
