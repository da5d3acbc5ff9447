"""Building blocks of the Turbo-VAED decoder for Wan 2.2. Every tensor is NCTHW; names are the released ones.

Source: GAIR-NLP/daVinci-MagiHuman at 209209b, inference/model/turbo_vaed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...layers import Chain, Function, Growth, Taps, Window, declared
from ..blocks import Block
from ..clips import FrameConv, split_frames
from ..turbo_vaed.blocks import ChannelRMSNorm
from ..turbo_vaed.blocks import ResnetBlock as LayerNormResnetBlock


class ResnetBlock(LayerNormResnetBlock):
    """As in Turbo-VAED, with a channel RMSNorm before the shortcut instead of a LayerNorm."""

    norm3: Any

    def __init__(self, in_channels: int, out_channels: int, *, eps: float, **options: Any) -> None:
        super().__init__(in_channels, out_channels, eps=eps, **options)
        if in_channels != out_channels:
            self.norm3 = ChannelRMSNorm(eps)


class TimeConv(nn.Module):
    """A convolution over time only, to twice the channels; replicated frames at the borders."""

    def __init__(self, channels: int, causal: bool) -> None:
        super().__init__()
        self.kernel, self.causal = 3, causal
        self.conv = nn.Conv3d(channels, 2 * channels, (3, 1, 1))

    def layer(self, *prepare: Function) -> Window:
        """The convolution, with functions of each place and time before its border frames."""
        return Window((self.conv,), Taps.centred(self.kernel, causal=self.causal), prepare=prepare)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)


class Upsampler(nn.Module):
    """Twice the frames by a convolution over time, then twice the height and width by repetition and a convolution.

    The first of the doubled frames is dropped, unless the clip is the later part of one (`first_chunk` False).
    """

    def __init__(self, channels: int, *, temporal: bool, causal: bool) -> None:
        super().__init__()
        if temporal:
            self.time_conv = TimeConv(channels, causal)
        # The number 1 is the released one: a module without weights comes before it.
        self.resample = nn.ModuleDict({"1": FrameConv(channels, channels, 3, doubles=True)})

    def layer(self, first_chunk: bool = True) -> Chain:
        """The convolution over time, the doubled frames, the doubled height and width."""
        layers = [declared(self.resample["1"])]
        if hasattr(self, "time_conv"):
            layers = [declared(self.time_conv), Growth((self.split,), 2, dropped=int(first_chunk)), *layers]
        return Chain(tuple(layers))

    def forward(self, x: Tensor, first_chunk: bool = True) -> Tensor:
        return self.layer(first_chunk)(x)

    def split(self, x: Tensor) -> Tensor:
        """(N, 2C, T, H, W) to (N, C, 2T, H, W)."""
        return split_frames(x, 2)


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
        causal: bool,
        **block: Any,
    ) -> None:
        super().__init__()
        if in_channels != out_channels:
            self.conv_in = ResnetBlock(in_channels, out_channels, causal=causal, **block)
        if scales:
            self.upsamplers = nn.ModuleList([Upsampler(out_channels, temporal=not spatial_only, causal=causal)])
        self.resnets = nn.ModuleList(
            ResnetBlock(out_channels, out_channels, causal=causal, first_relu=scales, **block)
            for _ in range(layers)
        )
