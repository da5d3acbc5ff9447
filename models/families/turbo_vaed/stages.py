"""The decoder as a chain of stages, which take a clip piece by piece and make any rows of it.

A time convolution of k taps holds the last k - 1 frames of its input. It starts with copies of its first frame and
ends with copies of its last one, as `pad_time` pads a whole clip; every layer has its own borders, so no halo is
recomputed and nothing is blended. A residual block holds k - 1 frames of its own input, which serve its first
convolution and, delayed by what the two convolutions look ahead, its shortcut; and k - 1 frames of its second
convolution's input.

To make certain rows of the frames, each stage makes just the rows that the stages behind it need: a convolution
of k rows needs k // 2 more at each edge that is no edge of the frame, where padding is zeros as ever.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ModelError
from .blocks import Conv3d, DepthwiseSeparableConv3d, FrameUpsampler, Upsampler, pad_time

if TYPE_CHECKING:
    from .decoder import TurboVAEDecoder


@dataclass(frozen=True)
class Rows:
    """Rows from `start` to before `stop` of frames that are `height` rows high."""

    start: int
    stop: int
    height: int

    def __len__(self) -> int:
        return self.stop - self.start

    def widened(self, rows: int) -> Rows:
        """These and as many more at both edges, as far as the frame goes."""
        return Rows(max(self.start - rows, 0), min(self.stop + rows, self.height), self.height)

    def halved(self) -> Rows:
        """What a 2x2 pixel shuffle makes these from."""
        return Rows(self.start // 2, -(-self.stop // 2), self.height // 2)

    def doubled(self) -> Rows:
        """What a 2x2 pixel shuffle makes of these."""
        return Rows(2 * self.start, 2 * self.stop, 2 * self.height)

    def of(self, given: Rows) -> slice:
        """Where these are in a tensor that holds the rows `given`."""
        return slice(self.start - given.start, self.stop - given.start)


_ALL = slice(None)


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

    def restrict(self, rows: Rows) -> Rows:
        """Make these rows only, from now on. Returns the rows of the input that it then takes."""
        return rows


class Framewise(Stage):
    """A function of each place and time by itself."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def push(self, x: Tensor) -> Tensor:
        return self.function(x)


class Upsample2d(Framewise):
    """A convolution and pixel shuffle of each frame by itself."""

    crop = _ALL

    def __init__(self, module: FrameUpsampler) -> None:
        super().__init__(module)
        self.halo = module.conv.kernel_size[0] // 2

    def push(self, x: Tensor) -> Tensor:
        return self.function(x)[..., self.crop, :]

    def restrict(self, rows: Rows) -> Rows:
        taken = rows.halved().widened(self.halo)
        self.crop = rows.of(taken.doubled())
        return taken


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

    def restrict(self, rows: Rows) -> Rows:
        for stage in reversed(self.stages):
            rows = stage.restrict(rows)
        return rows

    def _push(self, x: Tensor, start: int) -> Tensor | None:
        y: Tensor | None = x
        for stage in self.stages[start:]:
            if y is None:
                return None
            y = stage.push(y)
        return y


class TimeConv(Stage):
    """A convolution that replicates border frames; holds k - 1 frames of its input.

    Args:
        module: the convolution.
        prepare: a function of each place and time, between what is held and the convolution.
    """

    crop = _ALL

    def __init__(self, module: nn.Module, prepare: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        if not isinstance(module, Conv3d | DepthwiseSeparableConv3d):
            raise ModelError(
                f"Cannot stream a {type(module).__name__}; of the convolutions over time, Conv3d and "
                "DepthwiseSeparableConv3d can. Decode the whole clip, or restore the model's own modules."
            )
        # Padding the clip (0, 1) shows how many copies the module's rule puts at each end.
        padded = pad_time(torch.arange(2, device="cpu").view(1, 1, 2, 1, 1), module.kernel, module.causal)
        self.after = int(padded.sum()) - 1
        self.before = padded.numel() - 2 - self.after
        self.halo = module.kernel // 2
        # The module itself with the same weights, only without its padding in time, which kernel 1 turns off.
        self.conv = copy.copy(module)
        self.conv.kernel = 1
        self.prepare = prepare
        self.held: Tensor | None = None

    def push(self, x: Tensor) -> Tensor | None:
        return self.convolve(self.extend(x))

    def extend(self, x: Tensor) -> Tensor:
        """The frames held and the next ones, of which it holds the last from now on."""
        if self.held is None:
            x = torch.cat([x[:, :, :1]] * self.before + [x], dim=2)
        else:
            x = torch.cat([self.held, x], dim=2)
        ready = x.shape[2] - (self.before + self.after)
        self.held = x[:, :, max(ready, 0) :].clone()  # a view would keep all of x alive
        return x

    def convolve(self, x: Tensor) -> Tensor | None:
        """What the frames that `extend` gave make."""
        if x.shape[2] <= self.before + self.after:
            return None
        return self.conv(self.prepare(x))[..., self.crop, :]

    def flush(self) -> Iterator[Tensor]:
        for last in self.tail():
            y = self.push(last)
            if y is not None:
                yield y
        self.held = None

    def tail(self) -> Iterator[Tensor]:
        """The copies of the last frame that end the clip."""
        if self.held is not None:
            last = self.held[:, :, -1:]
            # One at a time: a piece of several low-resolution frames would be many more at full resolution.
            for _ in range(self.after):
                yield last

    def state(self) -> list[Tensor]:
        return [] if self.held is None else [self.held]

    def restrict(self, rows: Rows) -> Rows:
        taken = rows.widened(self.halo)
        self.crop = rows.of(taken)
        return taken


class Interleave(Stage):
    """What an upsampler does after its convolution. Only the first piece of a clip loses frames."""

    crop = _ALL

    def __init__(self, module: Upsampler) -> None:
        self.keep_first = module.keep_first
        self.shuffle = copy.copy(module)
        self.shuffle._modules = {**module._modules, "conv": nn.Identity()}

    def push(self, x: Tensor) -> Tensor | None:
        y = self.shuffle(x)
        self.shuffle.keep_first = True
        return y[..., self.crop, :]

    def flush(self) -> Iterator[Tensor]:
        self.shuffle.keep_first = self.keep_first
        yield from ()

    def restrict(self, rows: Rows) -> Rows:
        taken = rows.halved()
        self.crop = rows.of(taken.doubled())
        return taken


class Residual(Stage):
    """A ResNet block; what its first convolution holds is the block's input, and serves the shortcut too.

    Both convolutions have the same k taps and so look ahead k - 1 frames together at most: a frame's shortcut is
    still held when its branch is done.
    """

    crop = _ALL

    def __init__(self, block: Any) -> None:  # a ResnetBlock; module lists forget the type
        self.conv1 = TimeConv(block.conv1, lambda x: block.first_activation(block.norm(x)))
        self.conv2 = TimeConv(block.conv2)
        self.block = block
        self.waiting = 0  # the last frames taken, whose branch is not done

    def push(self, x: Tensor) -> Tensor | None:
        self.waiting += x.shape[2]
        x = self.conv1.extend(x)
        y = self.conv1.convolve(x)
        if y is not None:
            y = self.conv2.push(F.silu(self.block.norm(y)))
        return None if y is None else self._add(y, x)

    def flush(self) -> Iterator[Tensor]:
        for last in self.conv1.tail():
            y = self.push(last)
            if y is not None:
                yield y
        for y in self.conv2.flush():
            assert self.conv1.held is not None  # the first convolution has seen all that the second one has
            yield self._add(y, self.conv1.held)
        self.conv1.held, self.waiting = None, 0

    def state(self) -> list[Tensor]:
        return self.conv1.state() + self.conv2.state()

    def restrict(self, rows: Rows) -> Rows:
        taken = self.conv1.restrict(self.conv2.restrict(rows))
        self.crop = rows.of(taken)
        return taken

    def _add(self, y: Tensor, x: Tensor) -> Tensor:
        """The branch's next frames and their shortcuts, of an x that ends with the frames that wait."""
        first = x.shape[2] - self.waiting
        x = x[:, :, first : first + y.shape[2], self.crop]
        self.waiting -= y.shape[2]
        if hasattr(self.block, "conv_shortcut"):  # one tap, so it delays nothing
            x = self.block.conv_shortcut(self.block.norm3(x))
        return y + x


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
            stages += [activation, Upsample2d(getattr(model, name))]
    return Chain([*stages, activation, TimeConv(model.conv_out)])
