"""Flash-VAED for Wan 2.1 (arXiv 2602.19161): Wan's decoder with depthwise convolutions, 2D ones where it is large.

Parameter names are the released ones. Every tensor is NCTHW. Source: Aoko955/Flash-VAED at 54a27aa, models/wan.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..decoder import Decoder
from ..errors import ModelError
from ..fields import length_faults, read_fields
from ..latents import LatentSpec
from ..layers import (
    WHOLE_FRAME,
    Border,
    Chain,
    FirstAlone,
    Framewise,
    Function,
    Growth,
    Layer,
    Residual,
    Taps,
    Window,
    declared,
)
from ..statistics import LatentStatistics
from .base import Family
from .clips import FrameConv, per_frame, split_frames
from .wan_statistics import WAN21

CLASS_NAME = "FlashVAEDWan"


@dataclass(frozen=True)
class FlashVAEDWanConfig:
    """Architecture of one decoder. Sequences are in the order in which the decoder runs its stages.

    Attributes:
        latent_channels: channels of the latents.
        stage_channels: width of each stage.
        upsampled_channels: what the upsampler behind each stage but the last gives.
        temporal_upsample: whether that upsampler doubles the frames too.
        framewise: whether a stage's blocks are 2D convolutions of each frame; the others are depthwise-separable 3D
            ones.
        layers: residual blocks of each stage.
        out_channels: channels of the frames.
    """

    latent_channels: int
    stage_channels: tuple[int, ...]
    upsampled_channels: tuple[int, ...]
    temporal_upsample: tuple[bool, ...]
    framewise: tuple[bool, ...]
    layers: int = 3
    out_channels: int = 3

    def __post_init__(self) -> None:
        stages = len(self.stage_channels)
        lengths = {
            "upsampled_channels": stages - 1,
            "temporal_upsample": stages - 1,
            "framewise": stages,
        }
        faults = length_faults(self, lengths, f"{stages} stages")
        if not stages:
            faults.append("stage_channels is empty")
        if self.layers < 1:
            faults.append(f"layers is {self.layers}; it must be at least 1")
        if faults:
            raise ModelError("Impossible Flash-VAED configuration for Wan: " + "; ".join(faults) + ".")

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes."""
        return LatentSpec(self.latent_channels, 2 ** len(self.upsampled_channels), 2 ** sum(self.temporal_upsample))

    def to_json(self) -> str:
        """The configuration as JSON."""
        return json.dumps({"_class_name": CLASS_NAME, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "the configuration") -> FlashVAEDWanConfig:
        """Read a saved configuration. Unknown keys and values of another type raise ModelError."""
        return cls(**read_fields(cls, data, where, "Flash-VAED for Wan"))


PRESETS: dict[str, FlashVAEDWanConfig] = {
    "flash-wan": FlashVAEDWanConfig(
        latent_channels=16,
        stage_channels=(384, 384, 24, 12),
        upsampled_channels=(192, 24, 12),
        temporal_upsample=(True, True, False),
        framewise=(False, False, True, True),
    ),
}


class ScaledRMSNorm(nn.Module):
    """Divide by the root mean square over channels at each place and time, then scale each channel.

    Args:
        axes: axes of 1 that the released scale has after its channels.
    """

    # The released norm divides by a norm of at least 1e-12 instead, which differs for values under 1e-4 only.
    eps = 1e-12

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * axes))

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.gamma.reshape(1, -1, 1, 1, 1)
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps) * gamma


class CausalConv3d(nn.Conv3d):
    """3D convolution that sees zeros before the first frame and around each frame."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int, int]) -> None:
        time, height, width = kernel if isinstance(kernel, tuple) else (kernel,) * 3
        space = (0, height // 2, width // 2)
        super().__init__(in_channels, out_channels, (time, height, width), padding=space)

    def layer(self, *prepare: Function) -> Window:
        """The convolution, with functions of each place and time before its border frames."""
        taps = Taps(self.kernel_size[0], border=Border.ZEROS)
        return Window((self.convolve,), taps, rows=self.kernel_size[1] // 2, prepare=prepare)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution of a clip with its border frames."""
        return super().forward(x)


class CausalDepthwiseConv3d(nn.Module):
    """Depthwise 3D convolution that sees zeros before the first frame, then a pointwise one."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        space = (0, kernel // 2, kernel // 2)
        self.depthwise_conv = nn.Conv3d(in_channels, in_channels, kernel, padding=space, groups=in_channels)
        self.pointwise_conv = nn.Conv3d(in_channels, out_channels, 1)

    def layer(self, *prepare: Function) -> Window:
        """The two convolutions, with functions of each place and time before their border frames."""
        taps = Taps(self.kernel, border=Border.ZEROS)
        return Window((self.depthwise_conv, self.pointwise_conv), taps, rows=self.kernel // 2, prepare=prepare)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, plus a shortcut, which a framewise block always convolves."""

    def __init__(self, in_channels: int, out_channels: int, framewise: bool) -> None:
        super().__init__()
        conv: Any = FrameConv if framewise else CausalDepthwiseConv3d
        axes = 2 if framewise else 3
        self.residual = nn.Sequential(
            ScaledRMSNorm(in_channels, axes),
            nn.SiLU(),
            conv(in_channels, out_channels, 3),
            ScaledRMSNorm(out_channels, axes),
            nn.SiLU(),
            nn.Identity(),  # a dropout in training code; it keeps the numbers of what follows
            conv(out_channels, out_channels, 3),
        )
        if framewise or in_channels != out_channels:
            self.shortcut = conv(in_channels, out_channels, 1)

    def layer(self) -> Residual:
        """The block: two convolutions, and a shortcut of one tap or none."""
        norm1, silu, conv1, norm2, _, _, conv2 = self.residual
        branch = (declared(conv1, norm1, silu), declared(conv2, norm2, silu))
        return Residual(branch, (declared(self.shortcut),) if hasattr(self, "shortcut") else ())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)


class FrameAttention(nn.Module):
    """Attention of one head between all places of a frame, plus the frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ScaledRMSNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def layer(self) -> Framewise:
        """The block: each row depends on all rows of its frame."""
        return Framewise((self,), rows=WHOLE_FRAME)

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self._attend, self.norm(x)) + x

    def _attend(self, frames: Tensor) -> Tensor:
        m, c, h, w = frames.shape
        places = self.to_qkv(frames).reshape(m, 1, 3 * c, h * w).transpose(2, 3)
        query, key, value = (places[..., i * c : (i + 1) * c] for i in range(3))
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(2, 3).reshape(m, c, h, w))


class Upsampler(nn.Module):
    """Twice the frames but for the first, then twice the height and width by repetition and a convolution.

    The first latent frame stands for one frame only: the convolution over time sees those after it, and zeros
    before them.
    """

    def __init__(self, in_channels: int, out_channels: int, temporal: bool) -> None:
        super().__init__()
        # The number 1 is the released one: a module without weights comes before it.
        self.resample = nn.ModuleDict({"1": FrameConv(in_channels, out_channels, 3, doubles=True)})
        if temporal:
            self.time_conv = CausalConv3d(in_channels, 2 * in_channels, (3, 1, 1))

    def layer(self) -> Chain:
        """The doubled frames, then the doubled height and width."""
        layers = [declared(self.resample["1"])]
        if hasattr(self, "time_conv"):
            layers = [FirstAlone(self.time_conv.layer(), Growth((self.split,), 2)), *layers]
        return Chain(tuple(layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)

    def split(self, x: Tensor) -> Tensor:
        """(N, 2C, T, H, W) to (N, C, 2T, H, W)."""
        return split_frames(x, 2)


class FlashDecoder(nn.Module):
    """What the released checkpoint calls `decoder`."""

    def __init__(self, config: FlashVAEDWanConfig) -> None:
        super().__init__()
        widths = config.stage_channels
        self.conv1 = CausalConv3d(config.latent_channels, widths[0], 3)
        self.middle = nn.ModuleList(
            [
                ResidualBlock(widths[0], widths[0], framewise=False),
                FrameAttention(widths[0]),
                ResidualBlock(widths[0], widths[0], framewise=False),
            ]
        )
        self.upsamples = nn.ModuleList()
        self.ends = []
        given = widths[0]
        for stage, width in enumerate(widths):
            for layer in range(config.layers):
                self.upsamples.append(ResidualBlock(width if layer else given, width, config.framewise[stage]))
            self.ends.append(len(self.upsamples) - 1)
            if stage < len(widths) - 1:
                given = config.upsampled_channels[stage]
                self.upsamples.append(Upsampler(width, given, config.temporal_upsample[stage]))
        self.head = nn.Sequential(
            ScaledRMSNorm(widths[-1], 3), nn.SiLU(), CausalConv3d(widths[-1], config.out_channels, 3)
        )

    def layers(self) -> dict[str, Layer]:
        """What it computes, by the names of its modules; `head` is all behind the last block."""
        parts: dict[str, Any] = {"conv1": self.conv1}
        for name in ("middle", "upsamples"):
            parts |= {f"{name}.{i}": module for i, module in enumerate(getattr(self, name))}
        layers = {name: declared(module) for name, module in parts.items()}
        return {**layers, "head": declared(self.head[2], self.head[0], self.head[1])}

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.conv1(x)
        for module in self.middle:
            x = module(x)
        features = {"mid_block": x}
        for i, module in enumerate(self.upsamples):
            x = module(x)
            if i in self.ends:
                features[f"up_block_{self.ends.index(i)}"] = x
        return self.layers()["head"](x), features


class FlashVAEDWanDecoder(Decoder):
    """Flash-VAED's decoder for Wan 2.1, causal: no frame depends on a later latent frame.

    Computes on a whole clip what the public `WanVAE_.decode` computes latent frame by latent frame for the same
    weights (Aoko955/Flash-VAED at 54a27aa, models/wan/model_hybrid_aggressive.py). The public code begins a new
    clip at the 22nd latent frame, as if nothing came before; this one does not.

    Latents are (N, C, T', H', W'), as the encoder emits them, not normalised for a diffusion model.
    Frames are (N, 3, T, H, W), RGB, nominally in [-1, 1], not clamped. `spec` relates the two sizes.
    """

    weights_prefix = ""

    def __init__(self, config: FlashVAEDWanConfig) -> None:
        super().__init__()
        self.config = config
        self.conv2 = CausalConv3d(config.latent_channels, config.latent_channels, 1)
        self.decoder = FlashDecoder(config)

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes."""
        return self.config.spec

    @property
    def statistics(self) -> LatentStatistics | None:
        """How a diffusion model normalises these latents: Wan 2.1's numbers where the channels are as many."""
        if self.stored_statistics is None and self.config.latent_channels == len(WAN21.mean):
            return WAN21
        return self.stored_statistics

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, C, T', H', W') to frames (N, 3, T, H, W); sizes are not checked."""
        return self.decode_with_features(latents)[0]

    def decode_with_features(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, with the feature maps that distillation aligns: `mid_block`, `up_block_0`, ..."""
        return self.decoder(self.conv2(latents))

    def layers(self) -> dict[str, Layer]:
        """What the decoder computes, by the names of its modules."""
        inner = {f"decoder.{name}": layer for name, layer in self.decoder.layers().items()}
        return {"conv2": declared(self.conv2), **inner}


# A checkpoint of the whole autoencoder holds these beside the decoder: the encoder and its last convolution.
_LEFT_OUT = ("encoder.", "conv1.")


def own_weights(state: Mapping[str, Tensor], config: FlashVAEDWanConfig) -> dict[str, Tensor]:
    """The weights `decoder.*` and `conv2.*`, of a whole autoencoder's dict."""
    return {name: value for name, value in state.items() if not name.startswith(_LEFT_OUT)}


FAMILY = Family(
    name="flash-vaed-wan",
    title="Flash-VAED for Wan 2.1 (arXiv 2602.19161): depthwise 3D convolutions, then 2D ones, causal",
    config=FlashVAEDWanConfig,
    decoder=FlashVAEDWanDecoder,
    presets=PRESETS,
    class_names=(CLASS_NAME,),
    own_weights=own_weights,
    student=True,
    causal=lambda config: config,
)
