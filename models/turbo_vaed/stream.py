"""Exact streaming decode: the frames of the whole-clip decode, in memory that does not grow with the clip.

The decoder runs depth first, as a chain of stages made from the modules of the model itself. A time convolution
of k taps holds the last k - 1 frames of its input. It starts with copies of its first frame and ends with copies
of its last one, as `pad_time` pads a whole clip; every layer has its own borders, so no halo is recomputed and
nothing is blended. A residual block also holds the frames of its shortcut that its branch still delays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError
from ..latents import LatentSpec
from .blocks import Conv3d, DepthwiseSeparableConv3d, Upsampler, pad_time

if TYPE_CHECKING:
    from .decoder import TurboVAEDecoder


class Stage:
    """A part of the decoder that takes a clip's frames piece by piece. Tensors are (N, C, t, H, W)."""

    def push(self, x: Tensor) -> Tensor | None:
        """Take the next frames; give those that are final by now, None if there are none yet."""
        raise NotImplementedError

    def flush(self) -> Iterator[Tensor]:
        """End the clip: give its last frames. Exhausted, it leaves the stage empty, as before the first push."""
        yield from ()

    def state(self) -> list[Tensor]:
        """What is held between pushes, each with storage of its own."""
        return []


class Framewise(Stage):
    """A function without extent in time."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def push(self, x: Tensor) -> Tensor:
        return self.function(x)


class Chain(Stage):
    """Stages one after the other, depth first."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages

    def push(self, x: Tensor) -> Tensor | None:
        return self._push(x, 0)

    def flush(self) -> Iterator[Tensor]:
        for i, stage in enumerate(self.stages):
            for tail in stage.flush():
                y = self._push(tail, i + 1)
                if y is not None:
                    yield y

    def state(self) -> list[Tensor]:
        return [held for stage in self.stages for held in stage.state()]

    def _push(self, x: Tensor, start: int) -> Tensor | None:
        y: Tensor | None = x
        for stage in self.stages[start:]:
            if y is None:
                return None
            y = stage.push(y)
        return y


class TimeConv(Stage):
    """A convolution that replicates border frames; holds k - 1 frames of its input."""

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, Conv3d | DepthwiseSeparableConv3d):
            raise ModelError(
                f"Cannot stream a {type(module).__name__}; of the convolutions over time, Conv3d and "
                "DepthwiseSeparableConv3d can. Decode the whole clip, or restore the model's own modules."
            )
        # Padding the clip (0, 1) shows how many copies the module's rule puts at each end.
        padded = pad_time(torch.arange(2, device="cpu").view(1, 1, 2, 1, 1), module.kernel, module.causal)
        self.after = int(padded.sum()) - 1
        self.before = padded.numel() - 2 - self.after
        # The module itself with the same weights, only without its padding in time, which kernel 1 turns off.
        self.conv = copy.copy(module)
        self.conv.kernel = 1
        self.held: Tensor | None = None

    def push(self, x: Tensor) -> Tensor | None:
        if self.held is None:
            x = torch.cat([x[:, :, :1]] * self.before + [x], dim=2)
        else:
            x = torch.cat([self.held, x], dim=2)
        context = self.before + self.after
        ready = x.shape[2] - context
        self.held = x[:, :, max(ready, 0) :].clone()  # a view would keep all of x alive
        return self.conv(x) if ready > 0 else None

    def flush(self) -> Iterator[Tensor]:
        if self.held is not None:
            last = self.held[:, :, -1:]
            # One at a time: a piece of several low-resolution frames would be many more at full resolution.
            for _ in range(self.after):
                y = self.push(last)
                if y is not None:
                    yield y
        self.held = None

    def state(self) -> list[Tensor]:
        return [] if self.held is None else [self.held]


class Interleave(Stage):
    """What an upsampler does after its convolution. Only the first piece of a clip loses frames."""

    def __init__(self, module: Upsampler) -> None:
        self.keep_first = module.keep_first
        self.shuffle = copy.copy(module)
        self.shuffle._modules = {**module._modules, "conv": nn.Identity()}

    def push(self, x: Tensor) -> Tensor | None:
        y = self.shuffle(x)
        self.shuffle.keep_first = True
        return y

    def flush(self) -> Iterator[Tensor]:
        self.shuffle.keep_first = self.keep_first
        yield from ()


class Residual(Stage):
    """A ResNet block; holds the shortcut of the frames that its two convolutions delay."""

    def __init__(self, block: Any) -> None:  # a ResnetBlock; module lists forget the type
        self.branch = Chain(
            [
                Framewise(lambda x: block.first_activation(block.norm(x))),
                TimeConv(block.conv1),
                Framewise(lambda x: F.silu(block.norm(x))),
                TimeConv(block.conv2),
            ]
        )
        self.block = block
        self.held: Tensor | None = None

    def push(self, x: Tensor) -> Tensor | None:
        y = self.branch.push(x)
        if hasattr(self.block, "conv_shortcut"):  # one tap, so it delays nothing
            x = self.block.conv_shortcut(self.block.norm3(x))
        return self._add(y, x if self.held is None else torch.cat([self.held, x], dim=2))

    def flush(self) -> Iterator[Tensor]:
        for y in self.branch.flush():
            assert self.held is not None  # the branch ends with as many frames as it delayed
            ready = self._add(y, self.held)
            assert ready is not None
            yield ready

    def state(self) -> list[Tensor]:
        return self.branch.state() + ([] if self.held is None else [self.held])

    def _add(self, y: Tensor | None, shortcut: Tensor) -> Tensor | None:
        ready = 0 if y is None else y.shape[2]
        self.held = shortcut[:, :, ready:].clone() if ready < shortcut.shape[2] else None
        return None if y is None else y + shortcut[:, :, :ready]


def stream_stages(model: TurboVAEDecoder) -> Chain:
    """The decoder as a chain of stages: latents (N, C, t, H', W') pushed in, frames (N, 3, t', H, W) out.

    The stages share the model's weights. One chain decodes one clip at a time.
    """
    stages: list[Stage] = [TimeConv(model.conv_in), *map(Residual, model.mid_block.resnets)]
    up_blocks: Any = model.up_blocks
    for block in up_blocks:
        if hasattr(block, "conv_in"):
            stages.append(Residual(block.conv_in))
        for upsampler in getattr(block, "upsamplers", ()):
            stages += [TimeConv(upsampler.conv), Interleave(upsampler)]
        stages += map(Residual, block.resnets)
    activation = Framewise(lambda x: F.silu(model.norm(x)))
    for name in ("upsampler2d_1", "upsampler2d_2"):
        if hasattr(model, name):
            stages += [activation, Framewise(getattr(model, name))]
    return Chain([*stages, activation, TimeConv(model.conv_out)])


def stream_frames(model: TurboVAEDecoder, latents: Tensor | Iterable[Tensor], chunk: int) -> Iterator[Tensor]:
    """`TurboVAEDecoder.stream`. What can be checked without pulling latents is checked at the call."""
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        raise ModelError(f"chunk is {chunk!r}; the number of latent frames to push at a time is needed, 1 or more.")
    if isinstance(latents, Tensor):
        _check(latents, model.spec, None)
        latents = (latents,)
    elif not isinstance(latents, Iterable):
        raise ModelError(f"Latents are a {type(latents).__name__}; a tensor or an iterable of tensors is needed.")
    return _stream(stream_stages(model), model.spec, latents, chunk)


def _stream(chain: Chain, spec: LatentSpec, arriving: Iterable[Tensor], chunk: int) -> Iterator[Tensor]:
    first: Tensor | None = None
    for latents in arriving:  # outside no_grad: the caller's iterator may compute with gradients
        _check(latents, spec, first)
        first = latents[:, :, :0] if first is None else first
        for piece in latents.split(chunk, dim=2):
            with torch.no_grad():
                frames = chain.push(piece)
            if frames is not None:
                yield frames
    if first is None:
        raise ModelError("No latents to decode: the iterator ended before its first chunk; one or more are needed.")
    yield from torch.no_grad()(chain.flush)()


def _check(latents: Tensor, spec: LatentSpec, first: Tensor | None) -> None:
    """Refuse what the decoder does not take, and a chunk that does not continue the `first` one's clip."""
    if not isinstance(latents, Tensor):
        raise ModelError(f"A chunk of latents is a {type(latents).__name__}; a tensor is needed.")
    spec.check(latents)
    if first is None:
        return
    given = tuple(latents.shape)
    n, c, _, h, w = first.shape
    if given != (n, c, given[2], h, w):
        raise ModelError(
            f"A chunk of latents has shape {given} after a first one with ({n}, {c}, any, {h}, {w}); only the "
            "number of frames may differ within a clip. Start another stream for another clip."
        )
    if (latents.dtype, latents.device) != (first.dtype, first.device):
        raise ModelError(
            f"A chunk of latents is {latents.dtype} on {latents.device} after a first one that is {first.dtype} "
            f"on {first.device}; all chunks of a clip need the same."
        )
