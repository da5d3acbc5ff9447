"""The Turbo-VAED decoder: latents of a frozen teacher encoder in, frames out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ModelError
from ...latents import LatentSpec
from ...layers import Chain, Layer, declared
from ...streaming import stream_frames
from .blocks import ChannelRMSNorm, Conv3d, FrameUpsampler, MidBlock, UpBlock
from .checkpoint import load_weights, locate, save_folder
from .config import PRESETS, TurboVAEDConfig


class TurboVAEDecoder(nn.Module):
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

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes."""
        return self.config.spec

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, C, T', H', W') to frames (N, 3, T, H, W); sizes are not checked."""
        return self.decode_with_features(latents)[0]

    def layers(self) -> dict[str, Layer]:
        """What the decoder computes, by the names of its modules; `tail` is all behind the last block."""
        upsamplers = [f"upsampler2d_{i}" for i in (1, 2) if self.config.patch_size >= 2 * i]
        tail = [declared(getattr(self, name), self.norm, F.silu) for name in (*upsamplers, "conv_out")]
        blocks = {
            f"{name}.{part}": layer for name, block in self._blocks() for part, layer in block.layers().items()
        }
        return {"conv_in": declared(self.conv_in), **blocks, "tail": Chain(tuple(tail))}

    def decode_with_features(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, with the feature maps that distillation aligns: `mid_block`, `up_block_0`, ..."""
        x = self.conv_in(latents)
        features = {}
        for name, block in self._blocks():
            x = features[name.replace("blocks.", "block_")] = block(x)
        return self.layers()["tail"](x), features

    def _blocks(self) -> list[tuple[str, Any]]:
        return [
            ("mid_block", self.mid_block),
            *((f"up_blocks.{i}", block) for i, block in enumerate(self.up_blocks)),
        ]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode checked latents without gradients.

        Args:
            latents: (N, C, T', H', W') floating point, unnormalised.

        Returns:
            Frames (N, 3, T, H, W), RGB, nominally in [-1, 1], not clamped.

        Raises:
            ModelError: wrong rank, channels or dtype; the message has the shape given and the one needed.
        """
        self.spec.check(latents)
        return self(latents)

    def stream(self, latents: Tensor | Iterable[Tensor], *, chunk: int = 1, strips: int = 1) -> Iterator[Tensor]:
        """Decode piece by piece, without gradients, holding a number of frames that no clip length changes.

        The frames are those of `decode` on the whole clip, borders included, causal or not: the same function
        (fp64: within 1e-10), so in any dtype they differ by rounding only. A causal decoder gives all frames of
        a latent frame before it asks for the next one; otherwise frames come as soon as the latents that they
        depend on have arrived, and the last ones at the end.

        In strips, memory is that of one strip of rows, and the time is more: rows between two strips are computed
        for both. The latents are all taken first, each strip goes through the whole clip, and no frame comes
        before the last strip; what the others made waits in a temporary file, which takes
        (strips - 1) / strips of the bytes of all frames.

        Args:
            latents: (N, C, T', H', W') floating point, unnormalised; or an iterable of such chunks of one
                clip, in order, each with any number of frames.
            chunk: latent frames to decode at a time, at most. More takes more memory.
            strips: horizontal strips of each frame to decode one after the other.

        Returns:
            Iterator of frames (N, 3, t, H, W) in order, as soon as they are final; t varies.

        Raises:
            ModelError: wrong rank, channels or dtype, a chunk that does not fit the first one, no chunk at
                all, `chunk` or `strips` below 1, more strips than rows, or a temporary folder that is full.
                What an iterable holds is checked as it arrives.
        """
        return stream_frames(self, latents, chunk, strips)

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
        weights, config_file = locate(source, subfolder, local_files_only)
        if config is None:
            if config_file is None:
                raise ModelError(
                    f"{source} is a checkpoint without a config.json beside it: pass config= as a preset "
                    f"({', '.join(PRESETS)}) or as the released JSON file."
                )
            config = TurboVAEDConfig.from_json_file(config_file)
        elif isinstance(config, str) and config in PRESETS:
            config = PRESETS[config]
        elif not isinstance(config, TurboVAEDConfig):
            config = TurboVAEDConfig.from_json_file(config)
        with torch.device("meta"):
            model = cls(config)
        load_weights(model, weights)
        return model.to(torch_dtype or torch.float32).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `diffusion_pytorch_model.safetensors` (names `decoder.*`) into `folder`."""
        save_folder(self, self.config.to_json(), Path(folder))
