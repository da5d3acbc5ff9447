"""The Turbo-VAED decoder for Wan 2.2: latents of its frozen encoder in, frames out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers import Layer, declared
from ...statistics import LatentStatistics
from ..base import Family, weights_except
from ..blocks import BlockDecoder
from ..clips import FrameShuffle, PatchConv3d
from ..turbo_vaed.blocks import ChannelRMSNorm, Conv3d, FrameUpsampler
from ..wan_statistics import WAN22
from .blocks import MidBlock, UpBlock
from .config import CLASS_NAME, PRESETS, TurboVAEDWanConfig

_PATCH_SIZE = 2


class TurboVAEDWanDecoder(BlockDecoder):
    """Turbo-VAED with Wan's upsamplers: dense 3D convolutions, repetition of pixels.

    Computes the function of the public `TurboVAEDDecoder3d` on a whole clip for the same weights
    (GAIR-NLP/daVinci-MagiHuman at 209209b). The public pipeline decodes clips in windows of a few latent frames,
    which `decode_windows` does too.

    Latents are (N, C, T', H', W'), as the encoder emits them, not normalised for a diffusion model.
    Frames are (N, 3, T, H, W), RGB, nominally in [-1, 1], not clamped. `spec` relates the two sizes.
    """

    def __init__(self, config: TurboVAEDWanConfig) -> None:
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
                **conv(i + 1),
            )
            for i, width in enumerate(widths)
        )
        self.norm = ChannelRMSNorm()
        if config.use_unpatchify:
            self.conv_out: Conv3d = PatchConv3d(widths[-1], config.out_channels, _PATCH_SIZE, causal)
            self.shuffle = FrameShuffle(_PATCH_SIZE)
        else:
            self.upsampler2d_1 = FrameUpsampler(widths[-1])
            self.conv_out = Conv3d(widths[-1] // 4, config.out_channels, 3, causal)

    @property
    def statistics(self) -> LatentStatistics | None:
        """How a diffusion model normalises these latents: Wan 2.2's numbers where the channels are as many."""
        found = self.stored_statistics
        if found is None and self.config.latent_channels == len(WAN22.mean):
            found = WAN22
        found = replace(found or LatentStatistics(), scaling=self.config.scaling_factor)
        return None if found.is_identity else found

    def tail(self) -> list[Layer]:
        """The last convolution into patches, or an upsampler of each frame before it."""
        conv_out = declared(self.conv_out, self.norm, F.silu)
        if self.config.use_unpatchify:
            return [conv_out, declared(self.shuffle)]
        return [declared(self.upsampler2d_1, self.norm, F.silu), conv_out]

    @torch.no_grad()
    def decode_windows(self, latents: Tensor) -> Tensor:
        """Decode as the public pipeline does: in windows of a few latent frames, with one on each side as context.

        The frames near a window's ends differ from those of `decode`, which sees the whole clip.

        Args:
            latents: (N, C, T', H', W') floating point, unnormalised.

        Returns:
            Frames (N, 3, T, H, W), RGB, nominally in [-1, 1], not clamped.

        Raises:
            ModelError: wrong rank, channels or dtype.
        """
        self.spec.check(latents)
        first, step = self.config.first_chunk_size, self.config.step_size
        count, growth = latents.shape[2], self.spec.temporal
        missing = max(first - count, 0) or -(count - first) % step
        z = torch.cat([latents, *[latents[:, :, -1:]] * missing], dim=2)
        parts = []
        start, stop = 0, first
        while start < z.shape[2]:
            before, after = min(start, 1), min(z.shape[2] - stop, 1)
            part, _ = self._decode(z[:, :, start - before : stop + after], first_chunk=start == 0)
            parts.append(part[:, :, before * growth : part.shape[2] - after * growth])
            start, stop = stop, stop + step
        return torch.cat(parts, dim=2)[:, :, : self.spec.frames(count)]


FAMILY = Family(
    name="turbo-vaed-wan",
    title="Turbo-VAED for Wan 2.2 (GAIR-NLP/daVinci-MagiHuman): dense 3D convolutions, Wan's upsamplers",
    config=TurboVAEDWanConfig,
    decoder=TurboVAEDWanDecoder,
    presets=PRESETS,
    # The public code writes the first and reads any; its predecessor, Turbo-VAED, has the second.
    class_names=(CLASS_NAME, "AutoencoderKLTurboVAED"),
    # Beside the decoder: heads that only training uses, and latent statistics, which are placeholders there (the
    # public code has its own numbers).
    own_weights=weights_except("aligned_feature_projection_heads.", "latents_mean", "latents_std"),
    student=True,
    causal=lambda config: replace(config, decoder_causal=True),
)
