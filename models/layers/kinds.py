"""The kinds of layers that a decoder declares.

A decoder's `layers()` are all that is known of it: the whole-clip forward, eager streaming (`models/streaming`),
exported segments and the survey of their shapes (`convert/streaming`) run from that one list. A layer holds the
decoder's own modules and no weights of its own. Tensors are NCTHW.

Functions are modules, methods of modules, or functions without weights: what a closure holds would not be found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from .flow import WHOLE_CLIP, Border, Flow, Function, Taps
from .timing import Timing

# Rows of `Framewise` and `Window` where every row depends on the whole frame, as in attention. No frame is as high.
WHOLE_FRAME = 1 << 16


class Layer:
    """A part of a decoder that takes a clip's frames in order and gives frames."""

    def run(self, x: Tensor, flow: Flow) -> Tensor:
        """Compute what the flow has frames for."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """Compute it for a whole clip."""
        return self.run(x, WHOLE_CLIP)

    @property
    def timing(self) -> Timing:
        """How the frames that it makes stand against those that it takes."""
        return Timing()

    @property
    def early(self) -> int:
        """Frames that it looks ahead in its own input, where it keeps that as it comes."""
        return 0

    @property
    def functions_used(self) -> tuple[Function, ...]:
        """All functions that it calls."""
        raise NotImplementedError


def in_turn(functions: Sequence[Function], x: Tensor) -> Tensor:
    """One function after the other."""
    for function in functions:
        x = function(x)
    return x


def run_all(layers: Iterable[Layer], x: Tensor, flow: Flow) -> Tensor:
    """One layer after the other."""
    for layer in layers:
        x = layer.run(x, flow)
    return x


def timing_of(layers: Iterable[Layer]) -> Timing:
    """Of layers one after the other."""
    return reduce(lambda so_far, layer: so_far.then(layer.timing), layers, Timing())


@dataclass(frozen=True)
class Framewise(Layer):
    """Functions of each frame by itself.

    Attributes:
        functions: one after the other, (N, C, t, H, W) to (N, C', t, H, W).
        rows: rows above and below that each row depends on; 0 for functions of each pixel by itself.
    """

    functions: tuple[Function, ...]
    rows: int = 0

    def run(self, x: Tensor, flow: Flow) -> Tensor:
        flow.reach(self.rows)
        return in_turn(self.functions, x)

    @property
    def functions_used(self) -> tuple[Function, ...]:
        return self.functions


@dataclass(frozen=True)
class Growth(Layer):
    """Functions that make several frames, or rows and columns, of each.

    Attributes:
        functions: one after the other, (N, C, t, H, W) to (N, C', t * frames, H * scale, W * scale), of each
            frame by itself.
        frames: frames that one frame becomes.
        scale: rows that one row becomes, and columns that one column becomes.
        dropped: frames that the clip then loses at its start.
        rows: rows of the input that count, above and below the one that rows are made of.
    """

    functions: tuple[Function, ...] = ()
    frames: int = 1
    scale: int = 1
    dropped: int = 0
    rows: int = 0

    def run(self, x: Tensor, flow: Flow) -> Tensor:
        flow.reach(self.rows)
        return flow.grow(in_turn(self.functions, x), self.frames, self.dropped, self.scale)

    @property
    def timing(self) -> Timing:
        return Timing(self.frames, self.dropped, self.dropped)

    @property
    def functions_used(self) -> tuple[Function, ...]:
        return self.functions


@dataclass(frozen=True)
class Window(Layer):
    """A convolution over time, or any other function of a window of frames.

    Attributes:
        functions: one after the other, (N, C, t + taps.count - 1, H, W) to (N, C', t, H, W).
        taps: the window, and what stands in it outside the clip.
        rows: rows above and below that each row depends on.
        prepare: functions of each place and time by itself that come before the border frames.
    """

    functions: tuple[Function, ...]
    taps: Taps
    rows: int = 0
    prepare: tuple[Function, ...] = ()

    def run(self, x: Tensor, flow: Flow) -> Tensor:
        return self.on(self.extended(x, flow), flow)

    def extended(self, x: Tensor, flow: Flow) -> Tensor:
        """x with the frames that are kept before it."""
        return x if self.taps.count == 1 else flow.extend(x, self.taps)

    def on(self, extended: Tensor, flow: Flow) -> Tensor:
        """What the frames that were extended before make."""
        # Preparation before the border: what stands there is what the convolution pads with. It also puts the
        # choice of border frames right before the convolution.
        x = in_turn(self.prepare, extended)
        flow.reach(self.rows)
        return in_turn(self.functions, x if self.taps.count == 1 else flow.border(x, self.taps))

    @property
    def timing(self) -> Timing:
        return Timing(delay=self.taps.ahead)

    @property
    def early(self) -> int:
        return self.taps.ahead

    @property
    def functions_used(self) -> tuple[Function, ...]:
        return self.prepare + self.functions


@dataclass(frozen=True)
class FirstAlone(Layer):
    """Growth in time of all frames but the clip's first one, which stays as it is and alone.

    out = cat([x[:1], growth(window(x[1:]))]): the window sees zeros where x[0] would be.

    Attributes:
        window: with zeros at the border.
        growth: moves values only, so that zeros stay zeros; it drops no frames and leaves rows as they are.
    """

    window: Window
    growth: Growth

    def __post_init__(self) -> None:
        growth = self.growth
        in_space = growth.scale != 1 or growth.rows
        if self.window.taps.border is not Border.ZEROS or growth.dropped or in_space:
            raise ModelError("FirstAlone takes a window with zeros at its border, and a growth in time alone.")

    def run(self, x: Tensor, flow: Flow) -> Tensor:
        window, growth = self.window, self.growth
        flow.reach(window.rows)
        return flow.first_alone(
            x,
            window.taps,
            lambda frames: in_turn(window.prepare, frames),
            lambda frames: in_turn(window.functions, frames),
            lambda frames: in_turn(growth.functions, frames),
            growth.frames,
        )

    @property
    def timing(self) -> Timing:
        # The first frame stands for the last of the frames that it would become.
        dropped = self.growth.frames - 1
        return self.window.timing.then(Timing(self.growth.frames, dropped, dropped))

    @property
    def functions_used(self) -> tuple[Function, ...]:
        return self.window.functions_used + self.growth.functions_used


@dataclass(frozen=True)
class Chain(Layer):
    """Layers one after the other."""

    layers: tuple[Layer, ...]

    def run(self, x: Tensor, flow: Flow) -> Tensor:
        return run_all(self.layers, x, flow)

    @property
    def timing(self) -> Timing:
        return timing_of(self.layers)

    @property
    def early(self) -> int:
        return self.layers[0].early if self.layers else 0

    @property
    def functions_used(self) -> tuple[Function, ...]:
        return tuple(function for layer in self.layers for function in layer.functions_used)


@dataclass(frozen=True)
class Residual(Layer):
    """The sum of a branch and a shortcut, both of the same input.

    The shortcut waits for what the branch looks ahead. Where the branch begins with a window, the frames that this
    keeps of the input serve the shortcut too.

    Attributes:
        branch: layers one after the other.
        shortcut: the same; none for the input itself. It looks ahead no further than the branch.
    """

    branch: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    def run(self, x: Tensor, flow: Flow) -> Tensor:
        if flow.whole:
            y, past = run_all(self.branch, x, flow), run_all(self.shortcut, x, flow)
        elif delay := self.shared_delay:
            first: Any = self.branch[0]
            extended = first.extended(x, flow)
            y, past = flow.both(
                lambda: run_all(self.branch[1:], first.on(extended, flow), flow),
                lambda: run_all(self.shortcut, flow.delayed(extended, first.taps, delay), flow),
            )
        else:
            y, past = flow.both(
                lambda: run_all(self.branch, x, flow),
                lambda: flow.delay(run_all(self.shortcut, x, flow), self.waits),
            )
        return y + past

    @property
    def timing(self) -> Timing:
        return timing_of(self.branch)

    @property
    def early(self) -> int:
        return self.branch[0].early if self.shared_delay else 0

    @property
    def waits(self) -> int:
        """Frames by which the branch is later than the shortcut, in frames of the sum.

        Raises ModelError where the two do not make the same frames, or the shortcut is later.
        """
        branch, shortcut = self.timing, timing_of(self.shortcut)
        if (branch.rate, branch.dropped) != (shortcut.rate, shortcut.dropped) or branch.delay < shortcut.delay:
            raise ModelError(
                f"The branch of a residual layer has {branch} and its shortcut {shortcut}: both must make and drop "
                "the same frames, and the shortcut must not be later."
            )
        return branch.delay - shortcut.delay

    @property
    def shared_delay(self) -> int:
        """Frames of the input by which the shortcut is delayed, where the branch's first window keeps them; else 0.

        All that looks ahead must come before the branch's frames grow, and the shortcut must look ahead at nothing.
        """
        first = self.branch[0] if self.branch else None
        delay, rest = divmod(self.waits, self.timing.rate)
        ahead, grown = 0, False
        for layer in self.branch:
            timing = layer.timing
            if grown and not timing.causal:
                return 0
            grown = grown or timing.rate != 1 or bool(timing.dropped)
            ahead += 0 if grown else timing.delay
        kept = first.taps.count - 1 if isinstance(first, Window) else 0
        return delay if not rest and ahead == delay <= kept and timing_of(self.shortcut).causal else 0

    @property
    def functions_used(self) -> tuple[Function, ...]:
        return tuple(function for layer in (*self.branch, *self.shortcut) for function in layer.functions_used)


@dataclass(frozen=True)
class WholeOnly(Layer):
    """A module that needs the whole clip, and why."""

    module: nn.Module
    reason: str

    def run(self, x: Tensor, flow: Flow) -> Tensor:
        if not flow.whole:
            raise self.refusal
        return self.module(x)

    @property
    def timing(self) -> Timing:
        raise self.refusal

    @property
    def refusal(self) -> ModelError:
        return ModelError(f"Cannot stream a {type(self.module).__name__}: {self.reason}. Decode the whole clip.")

    @property
    def functions_used(self) -> tuple[Function, ...]:
        return (self.module,)


def declared(module: Any, *prepare: Function) -> Layer:
    """The layer that a module declares by its method `layer`.

    A module without one, as one that was put in another's place, needs whole clips.

    Args:
        prepare: as of `Window`.
    """
    if hasattr(module, "layer"):
        return module.layer(*prepare)
    layer = WholeOnly(module, f"a {type(module).__name__} declares no layer, by a method `layer`")
    return Chain((Framewise(prepare), layer)) if prepare else layer
