"""The layers of Wan's decoder, declared over diffusers' modules.

diffusers decodes one latent frame at a time, and each causal convolution keeps its last two inputs. Over a whole
clip that is: every convolution over time sees zeros before the first frame, attention is within a frame, and the
first latent frame stays one frame where the later ones are doubled.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..families.clips import per_frame, split_frames
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
)


class _Convolution(nn.Module):
    """A causal convolution of Wan's without its zeros in time: those around a frame are its own.

    Holds the convolution that it stands for; it has no weights beside.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        _, high, wide = self.conv.kernel_size
        return F.conv3d(x, self.conv.weight, self.conv.bias, padding=(0, high // 2, wide // 2))


class _PerFrame(nn.Module):
    """A module of images, run on every frame."""

    def __init__(self, images: nn.Module) -> None:
        super().__init__()
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self.images, x)


def layers_of(vae_decoder: Any, post_quant_conv: nn.Conv3d, patch_size: int) -> dict[str, Layer]:
    """The layers, by the names of diffusers' modules: latents (N, C, T', H', W') to frames clamped to [-1, 1].

    Args:
        vae_decoder: a WanDecoder3d, of Wan 2.1 or 2.2.
        post_quant_conv: what comes before it.
        patch_size: side of the patches that its last convolution gives; 1 for none.
    """
    found: dict[str, Layer] = {
        "post_quant_conv": _conv(post_quant_conv),
        "decoder.conv_in": _conv(vae_decoder.conv_in),
    }
    mid = vae_decoder.mid_block
    found["decoder.mid_block.resnets.0"] = _resnet(mid.resnets[0])
    for i, (attention, resnet) in enumerate(zip(mid.attentions, mid.resnets[1:], strict=True)):
        if attention is not None:
            found[f"decoder.mid_block.attentions.{i}"] = Framewise((attention,), rows=WHOLE_FRAME)
        found[f"decoder.mid_block.resnets.{i + 1}"] = _resnet(resnet)
    for i, block in enumerate(vae_decoder.up_blocks):
        found |= _up_block(f"decoder.up_blocks.{i}", block)
    found["decoder.conv_out"] = _conv(vae_decoder.conv_out, vae_decoder.norm_out, vae_decoder.nonlinearity)
    if patch_size != 1:
        found["unpatchify"] = Growth((partial(_unpatchify, patch=patch_size),), scale=patch_size)
    found["clamp"] = Framewise((partial(torch.clamp, min=-1.0, max=1.0),))
    return found


def _conv(conv: nn.Conv3d, *prepare: Function) -> Layer:
    """A causal convolution, after functions of each place and time."""
    rows = conv.kernel_size[1] // 2
    if conv.kernel_size[0] == 1:
        return Framewise((*prepare, _Convolution(conv)), rows)
    return Window((_Convolution(conv),), Taps(conv.kernel_size[0], border=Border.ZEROS), rows, prepare)


def _resnet(block: Any) -> Residual:
    branch = (
        _conv(block.conv1, block.norm1, block.nonlinearity),
        _conv(block.conv2, block.norm2, block.nonlinearity),
    )
    plain = isinstance(block.conv_shortcut, nn.Identity)
    return Residual(branch, () if plain else (_conv(block.conv_shortcut),))


def _up_block(name: str, block: Any) -> dict[str, Layer]:
    resnets: dict[str, Layer] = {f"{name}.resnets.{i}": _resnet(resnet) for i, resnet in enumerate(block.resnets)}
    shortcut = getattr(block, "avg_shortcut", None)
    if shortcut is not None:  # Wan 2.2
        up = _upsampler(block.upsampler)
        around = Growth((shortcut,), shortcut.factor_t, shortcut.factor_s, dropped=shortcut.factor_t - 1)
        return {name: Residual((*resnets.values(), up), (around,))}
    samplers = getattr(block, "upsamplers", None)
    if samplers is None:
        return resnets
    return {**resnets, f"{name}.upsamplers.0": _upsampler(samplers[0])}


def _upsampler(resample: Any) -> Chain:
    """Twice the frames but for the first, where it does so, then twice the height and width."""
    layers: tuple[Layer, ...] = (Growth((_PerFrame(resample.resample),), scale=2, rows=1),)
    if resample.mode == "upsample3d":
        doubled = Growth((partial(split_frames, parts=2),), 2)
        window = _conv(resample.time_conv)
        assert isinstance(window, Window)
        layers = (FirstAlone(window, doubled), *layers)
    return Chain(layers)


def _unpatchify(x: Tensor, patch: int) -> Tensor:
    """(N, p*p*C, T, H, W) to (N, C, T, p*H, p*W); a channel is (colour, column, row) of a patch."""
    n, c, t, h, w = x.shape
    x = x.reshape(n, c // patch**2, patch, patch, t, h, w)
    return x.permute(0, 1, 4, 5, 3, 6, 2).reshape(n, c // patch**2, t, h * patch, w * patch)
