"""Building blocks of the TAEHV decoder. Every tensor is NCTHW; parameter names are the released ones.

Source: madebyollin/taehv at 1f14a56.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers import Border, Framewise, Growth, Taps, Window
from ..clips import FrameConv, split_frames


class SoftClamp(nn.Module):
    """Latents, softly limited to [-3, 3]."""

    def layer(self) -> Framewise:
        """The function of each value."""
        return Framewise((self,))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3.0) * 3.0


class Activation(nn.Module):
    """ReLU."""

    def layer(self) -> Framewise:
        """The function of each value."""
        return Framewise((self,))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class MemoryBlock(nn.Module):
    """Three convolutions of each frame and the one before it, plus the frame. Zeros come before the first frame."""

    # Rows above and below that each row depends on: of the three convolutions together.
    rows = 3

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            FrameConv(2 * channels, channels, 3),
            Activation(),
            FrameConv(channels, channels, 3),
            Activation(),
            FrameConv(channels, channels, 3),
        )

    def layer(self) -> Window:
        """The block, as a window of two frames."""
        return Window((self.of_pairs,), Taps(2, border=Border.ZEROS), rows=self.rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)

    def of_pairs(self, x: Tensor) -> Tensor:
        """(N, C, T + 1, H, W) to (N, C, T, H, W): what each frame and the one before it make."""
        now, before = x[:, :, 1:], x[:, :, :-1]
        return F.relu(self.conv(torch.cat([now, before], dim=1)) + now)


class SuperMemoryBlock(nn.Module):
    """A depthwise 7x7 convolution of each frame and the one before it, two pointwise ones, plus the frame.

    Zeros come before the first frame.
    """

    rows = 3

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            FrameConv(2 * channels, 2 * channels, 7, groups=2 * channels, bias=False),
            FrameConv(2 * channels, 4 * channels, 1),
            Activation(),
            FrameConv(4 * channels, channels, 1, bias=False),
        )

    def layer(self) -> Window:
        """The block, as a window of two frames."""
        return Window((self.of_pairs,), Taps(2, border=Border.ZEROS), rows=self.rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)

    def of_pairs(self, x: Tensor) -> Tensor:
        """(N, C, T + 1, H, W) to (N, C, T, H, W): what each frame and the one before it make."""
        now, before = x[:, :, 1:], x[:, :, :-1]
        return self.conv(torch.cat([now, before], dim=1)) + now


class GrowTime(nn.Module):
    """A pointwise convolution that makes `frames` frames of each."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = FrameConv(channels, channels * frames, 1, bias=False)

    def layer(self) -> Growth:
        """The growth in time."""
        return Growth((self,), self.frames)

    def forward(self, x: Tensor) -> Tensor:
        return split_frames(self.conv(x), self.frames)


class Nothing(nn.Identity):
    """Keeps the released numbers of the layers behind it."""

    def layer(self) -> Framewise:
        """Every frame as it is."""
        return Framewise((self,))
