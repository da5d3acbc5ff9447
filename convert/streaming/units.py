"""The decoder's layers, each as a unit that takes a clip's frames call by call.

A unit computes what its layer does on the whole clip, delayed by the frames that it looks ahead. It shares the
layer's weights. What it keeps between calls and how borders are replicated goes through a `Flow`, whose two kinds
are the call of a segment and the survey that finds out shapes and delays before there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handheld.models import TurboVAEDecoder
from handheld.models.families.turbo_vaed.blocks import Conv3d, DepthwiseSeparableConv3d, Upsampler, pad_time
from handheld.runtime.stream_plan import TimeConv, Timeline

from ..errors import ExportError


def as_clip(frames: Tensor) -> Tensor:
    """(T, C, H, W) to NCTHW."""
    return frames.reshape(1, *frames.shape).transpose(1, 2)


def as_frames(clip: Tensor) -> Tensor:
    """NCTHW with N = 1 to (T, C, H, W)."""
    return clip.transpose(1, 2).reshape(clip.shape[2], clip.shape[1], *clip.shape[3:])


class Flow:
    """One call: the selects and states that its units use up, in order, and the states that they leave.

    Selects are (1, m, m), states (kernel - 1, C, H, W).
    """

    def __init__(self, selects: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        self._selects = iter(selects)
        self._states = iter(states)
        self.kept: list[Tensor] = []

    def extend(self, x: Tensor, conv: StreamConv) -> Tensor:
        """The frames that a convolution keeps, then the new ones: (1, C, kernel - 1 + t, H, W)."""
        extended = torch.cat([as_clip(next(self._states)), x], dim=2)
        self.kept.append(as_frames(extended[:, :, x.shape[2] :]))
        return extended

    def choose(self, extended: Tensor) -> Tensor:
        """For each frame that a convolution reads, the one that stands there or, at a border, in its place."""
        _, c, m, h, w = extended.shape
        # A product of whole frames: the one form of choosing that every runtime has, and exact.
        chosen = torch.bmm(next(self._selects), as_frames(extended).reshape(1, m, c * h * w))
        return as_clip(chosen.reshape(m, c, h, w))

    def reach(self, rows: int) -> None:
        """A convolution in space reads so many rows around each."""

    def grow(self, rate: int, dropped: int) -> None:
        """Frames and rows multiply: `rate` frames for each, of a clip the first `dropped` lost; 2x2 pixels."""


class Survey(Flow):
    """A call on shapes alone, which finds what a segment needs and gives."""

    def __init__(self, lead: int = 0) -> None:
        super().__init__((), ())
        self.at = Timeline(delay=lead)
        self.convs: list[TimeConv] = []
        self.states: list[tuple[int, ...]] = []
        self.halo = 0

    def extend(self, x: Tensor, conv: StreamConv) -> Tensor:
        self.convs.append(TimeConv(conv.kernel, self.at))
        self.at = self.at.then(Timeline(delay=conv.after))
        held = x.new_empty((1, x.shape[1], conv.kernel - 1, *x.shape[3:]))
        self.states.append(tuple(as_frames(held).shape))
        return torch.cat([held, x], dim=2)

    def choose(self, extended: Tensor) -> Tensor:
        return extended

    def reach(self, rows: int) -> None:
        self.halo += rows

    def grow(self, rate: int, dropped: int) -> None:
        self.at = self.at.then(Timeline(rate, dropped, dropped))
        self.halo *= 2


class Unit(nn.Module):
    """A layer, called with x (1, C, t, H, W) and the flow of the call.

    Attributes:
        ahead: frames that its first convolution looks ahead, where that keeps frames of the unit's x as they come.
    """

    ahead = 0

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        raise NotImplementedError


class StreamConv(Unit):
    """A convolution over time; `kernel` taps, of which `after` look ahead."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        if not isinstance(module, Conv3d | DepthwiseSeparableConv3d):
            raise ExportError(
                f"Cannot stream a {type(module).__name__}; of the convolutions over time, Conv3d and "
                "DepthwiseSeparableConv3d can. Export the whole clip, or restore the model's own modules."
            )
        self.kernel = module.kernel
        # Padding the clip (0, 1) shows how many copies of its last frame the module's rule appends.
        padded = pad_time(torch.arange(2, device="cpu").view(1, 1, 2, 1, 1), module.kernel, module.causal)
        self.ahead = self.after = int(padded.sum()) - 1
        plane: Any = module.conv if isinstance(module, Conv3d) else module.depthwise_conv
        self.rows = plane.padding[1]
        # The module itself with the same weights, only without its padding in time, which kernel 1 turns off.
        self.conv = copy.copy(module)
        self.conv.kernel = 1

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.on(self.extended(x, flow), flow)

    def extended(self, x: Tensor, flow: Flow) -> Tensor:
        return x if self.kernel == 1 else flow.extend(x, self)

    def on(self, extended: Tensor, flow: Flow) -> Tensor:
        """The convolution of frames that were extended before."""
        flow.reach(self.rows)
        return self.conv(extended if self.kernel == 1 else flow.choose(extended))


class StreamResidual(Unit):
    """A ResNet block. Its input is kept once, for its first convolution and for the shortcut that the two delay."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = StreamConv(block.conv1), StreamConv(block.conv2)
        self.ahead = self.conv1.ahead
        self.norm, self.first_activation = block.norm, block.first_activation
        if hasattr(block, "conv_shortcut"):
            self.norm3, self.conv_shortcut = block.norm3, block.conv_shortcut

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        frames = x.shape[2]
        extended = self.conv1.extended(x, flow)
        # Activations before the choice of frames, so that it stands right before the convolution, into whose own
        # combination of frames a rewrite may fold it.
        y = self.conv1.on(self.first_activation(self.norm(extended)), flow)
        y = self.conv2(F.silu(self.norm(y)), flow)
        start = self.conv1.kernel - 1 - self.conv1.after - self.conv2.after
        x = extended[:, :, start : start + frames]
        if hasattr(self, "conv_shortcut"):  # one tap: it keeps nothing and reaches nowhere
            x = self.conv_shortcut(self.norm3(x))
        return y + x


class StreamUpsampler(Unit):
    """Convolution, frames interleaved, pixels shuffled. The frames that a clip loses are left to the timeline."""

    def __init__(self, module: Upsampler) -> None:
        super().__init__()
        self.conv = StreamConv(module.conv)
        self.ahead = self.conv.ahead
        self.rate, self.dropped = module.temporal, 0 if module.keep_first else module.temporal - 1
        self.shuffle = copy.copy(module)
        self.shuffle.keep_first = True
        self.shuffle._modules = {**module._modules, "conv": nn.Identity()}

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        x = self.conv(x, flow)
        flow.grow(self.rate, self.dropped)
        return self.shuffle(x)


class StreamTail(Unit):
    """All behind the last block: frame-by-frame upsamplers and the convolution to RGB."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm = model.norm
        names = [name for name in ("upsampler2d_1", "upsampler2d_2") if hasattr(model, name)]
        self.upsamplers = nn.ModuleList(getattr(model, name) for name in names)
        self.conv_out = StreamConv(model.conv_out)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        for upsampler in self.upsamplers:
            x = upsampler(F.silu(self.norm(x)))
            conv: Any = upsampler.conv
            flow.reach(conv.padding[0])
            flow.grow(1, 0)
        return self.conv_out(F.silu(self.norm(x)), flow)


def units_of(model: TurboVAEDecoder) -> dict[str, Unit]:
    """The decoder as a chain of units, by the names of its modules; the weights are the model's own."""
    return dict(_units(model))


def _units(model: Any) -> Iterator[tuple[str, Unit]]:
    yield "conv_in", StreamConv(model.conv_in)
    for i, block in enumerate(model.mid_block.resnets):
        yield f"mid_block.resnets.{i}", StreamResidual(block)
    for i, up in enumerate(model.up_blocks):
        if hasattr(up, "conv_in"):
            yield f"up_blocks.{i}.conv_in", StreamResidual(up.conv_in)
        for j, upsampler in enumerate(getattr(up, "upsamplers", ())):
            yield f"up_blocks.{i}.upsamplers.{j}", StreamUpsampler(upsampler)
        for j, block in enumerate(up.resnets):
            yield f"up_blocks.{i}.resnets.{j}", StreamResidual(block)
    yield "tail", StreamTail(model)
