"""Building blocks of the Turbo-VAED decoder. Every tensor is NCTHW; parameter names are the released ones.

Source: arXiv 2508.09136 and hustvl/Turbo-VAED at 9268488.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers import Chain, Function, Growth, Residual, Taps, Window, declared
from ..blocks import Block


class ChannelRMSNorm(nn.Module):
    """Divide by the root mean square over channels (dim 1) at each place and time. No affine part."""

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps)


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over channels (dim 1) at each place and time, with scale and offset."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Conv3d(nn.Module):
    """Dense 3D convolution: zero padding in space, replicated frames in time."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, causal: bool) -> None:
        super().__init__()
        self.kernel, self.causal = kernel, causal
        space = (0, kernel // 2, kernel // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, padding=space)

    def layer(self, *prepare: Function) -> Window:
        """The convolution, with functions of each place and time before its border frames."""
        taps = Taps.centred(self.kernel, causal=self.causal)
        return Window((self.conv,), taps, rows=self.kernel // 2, prepare=prepare)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)


class DepthwiseSeparableConv3d(nn.Module):
    """Depthwise 3D convolution (replicated frames in time), then a pointwise one."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, causal: bool) -> None:
        super().__init__()
        self.kernel, self.causal = kernel, causal
        space = (0, kernel // 2, kernel // 2)
        self.depthwise_conv = nn.Conv3d(in_channels, in_channels, kernel, padding=space, groups=in_channels)
        self.pointwise_conv = nn.Conv3d(in_channels, out_channels, 1)

    def layer(self, *prepare: Function) -> Window:
        """The two convolutions, with functions of each place and time before their border frames."""
        taps = Taps.centred(self.kernel, causal=self.causal)
        return Window((self.depthwise_conv, self.pointwise_conv), taps, rows=self.kernel // 2, prepare=prepare)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)


class ResnetBlock(nn.Module):
    """RMSNorm, activation, convolution, twice, plus a shortcut.

    `first_relu`: the first activation is ReLU, as in every block that upsamples.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        causal: bool,
        depthwise: bool,
        kernel: int,
        eps: float,
        first_relu: bool = False,
    ) -> None:
        super().__init__()
        conv = DepthwiseSeparableConv3d if depthwise else Conv3d
        self.norm = ChannelRMSNorm()
        self.first_activation = F.relu if first_relu else F.silu
        self.conv1 = conv(in_channels, out_channels, kernel, causal)
        self.conv2 = conv(out_channels, out_channels, kernel, causal)
        if in_channels != out_channels:
            self.norm3 = ChannelLayerNorm(in_channels, eps=eps)
            self.conv_shortcut = conv(in_channels, out_channels, 1, causal)

    def layer(self) -> Residual:
        """The block: two convolutions, and a shortcut of one tap or none."""
        branch = (
            declared(self.conv1, self.norm, self.first_activation),
            declared(self.conv2, self.norm, F.silu),
        )
        shortcut = (declared(self.conv_shortcut, self.norm3),) if hasattr(self, "conv_shortcut") else ()
        return Residual(branch, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)


class Upsampler(nn.Module):
    """Decoupled 3D pixel shuffle: convolution to C*st*4 channels, interleave st frames, shuffle 2x2 in space.

    The first `st - 1` frames are dropped unless `keep_first` (Video DC-AE).
    """

    def __init__(self, channels: int, *, temporal: int, causal: bool, keep_first: bool) -> None:
        super().__init__()
        self.temporal, self.keep_first = temporal, keep_first
        self.conv = Conv3d(channels, channels * temporal * 4, 3, causal)

    def layer(self) -> Chain:
        """The convolution, then the shuffle."""
        dropped = 0 if self.keep_first else self.temporal - 1
        return Chain((declared(self.conv), Growth((self.shuffle,), self.temporal, scale=2, dropped=dropped)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)

    def shuffle(self, x: Tensor) -> Tensor:
        """(N, C * st * 4, T, H, W) to (N, C, T * st, 2H, 2W); no frame is dropped."""
        n, c, t, h, w = x.shape
        if self.temporal > 1:
            # Channel c*st + i becomes frame t*st + i.
            x = x.reshape(n, c // self.temporal, self.temporal, t, h, w).transpose(2, 3)
            x = x.reshape(n, c // self.temporal, t * self.temporal, h, w)
        return shuffle_frames(x)


def shuffle_frames(x: Tensor) -> Tensor:
    """2x2 pixel shuffle of every frame: (N, 4C, T, H, W) -> (N, C, T, 2H, 2W)."""
    return F.pixel_shuffle(x.transpose(1, 2), 2).transpose(1, 2)


class FrameUpsampler(nn.Module):
    """2D convolution and 2x2 pixel shuffle of every frame: (N, C, T, H, W) -> (N, C/4, T, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def layer(self, *prepare: Function) -> Growth:
        """The upsampler, after functions of each place and time."""
        return Growth((*prepare, self), scale=2, rows=self.conv.kernel_size[0] // 2)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, h, w = x.shape
        x = self.conv(x.transpose(1, 2).reshape(n * t, c, h, w))
        return F.pixel_shuffle(x, 2).reshape(n, t, c // 4, 2 * h, 2 * w).transpose(1, 2)


class MidBlock(Block):
    """ResNet blocks at the latents' resolution."""

    def __init__(self, channels: int, layers: int, **block: Any) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, **block) for _ in range(layers))


class UpBlock(Block):
    """Optional change of width, optional upsampling, ResNet blocks."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        *,
        scales: bool,
        spatial_only: bool,
        keep_first: bool,
        causal: bool,
        **block: Any,
    ) -> None:
        super().__init__()
        if in_channels != out_channels:
            self.conv_in = ResnetBlock(in_channels, out_channels, causal=causal, **block)
        if scales:
            temporal = 1 if spatial_only else 2
            self.upsamplers = nn.ModuleList(
                [Upsampler(out_channels, temporal=temporal, causal=causal, keep_first=keep_first)]
            )
        self.resnets = nn.ModuleList(
            ResnetBlock(out_channels, out_channels, causal=causal, first_relu=scales, **block)
            for _ in range(layers)
        )
