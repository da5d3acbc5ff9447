"""What several families do with clips: every tensor is NCTHW unless a docstring says otherwise."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import Framewise, Function, Growth, Layer, Taps, Window
from .turbo_vaed.blocks import Conv3d


def per_frame(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of images, (M, C, H, W) to (M, C', H', W'), to every frame of a clip."""
    n, c, t, h, w = x.shape
    y = function(x.transpose(1, 2).reshape(n * t, c, h, w))
    return y.reshape(n, t, *y.shape[1:]).transpose(1, 2)


def split_frames(x: Tensor, parts: int) -> Tensor:
    """(N, parts*C, T, H, W) to (N, C, T*parts, H, W): the i-th block of C channels becomes frame t*parts + i."""
    n, c, t, h, w = x.shape
    x = x.transpose(1, 2).reshape(n, t * parts, c // parts, h, w)
    return x.transpose(1, 2)


def columns_first(weight: Tensor, patch_size: int) -> Tensor:
    """The weight or bias of a convolution into patches, for a pixel shuffle.

    Channels (c, column, row) become (c, row, column): released heads number the pixels of a patch down its columns,
    a pixel shuffle along its rows.
    """
    split = weight.reshape(-1, patch_size, patch_size, weight[0].numel())
    return split.transpose(1, 2).reshape(weight.shape)


def double_nearest(images: Tensor) -> Tensor:
    """Images (M, C, H, W) at twice the height and width: each pixel becomes 2x2 equal ones."""
    return F.interpolate(images, scale_factor=2.0, mode="nearest")


class FrameConv(nn.Conv2d):
    """A 2D convolution of every frame, which keeps height and width.

    Args:
        doubles: each frame is first doubled in height and width, each pixel to 2x2 equal ones.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        bias: bool = True,
        groups: int = 1,
        doubles: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias, groups=groups)
        self.doubles = doubles

    def layer(self, *prepare: Function) -> Layer:
        """The convolution, after functions of each place and time."""
        rows = self.kernel_size[0] // 2
        if self.doubles:
            return Growth((*prepare, self), scale=2, rows=(rows + 1) // 2)
        return Framewise((*prepare, self), rows)

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self.convolve, x)

    def convolve(self, images: Tensor) -> Tensor:
        """The same of images (M, C, H, W)."""
        return super().forward(double_nearest(images) if self.doubles else images)


class FrameShuffle(nn.Module):
    """Pixel shuffle of every frame: (N, r*r*C, T, H, W) to (N, C, T, r*H, r*W)."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def layer(self, *prepare: Function) -> Growth:
        """The shuffle, after functions of each place and time."""
        return Growth((*prepare, self), scale=self.factor)

    def forward(self, x: Tensor) -> Tensor:
        if self.factor == 1:
            return x
        return F.pixel_shuffle(x.transpose(1, 2), self.factor).transpose(1, 2)


class PatchConv3d(Conv3d):
    """The last convolution: into patches, whose channels it gives in the order that a pixel shuffle takes."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, causal: bool) -> None:
        super().__init__(in_channels, out_channels * patch_size**2, 3, causal)
        self.patch_size = patch_size

    def layer(self, *prepare: Function) -> Window:
        """The convolution, with functions of each place and time before its border frames."""
        return Window((self.convolve,), Taps.centred(self.kernel, causal=self.causal), rows=1, prepare=prepare)

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution of a clip with its border frames."""
        assert self.conv.bias is not None
        weight, bias = (columns_first(value, self.patch_size) for value in (self.conv.weight, self.conv.bias))
        return F.conv3d(x, weight, bias, padding=(0, 1, 1))
