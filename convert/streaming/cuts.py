"""Where a decoder is cut into segments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from handheld.runtime.stream_plan import Timeline

from ..errors import ExportError
from ..graph.cost import counting_multiply_adds
from .call import Survey
from .units import is_causal, on_meta, spec_of, units_of

# A call of fewer frames costs more for each: a convolution in Winograd's form has tiles of two frames and more, and
# every call does a part of its work for the frames that it keeps, too.
_LEAST_FRAMES = 4

# ... or up to so many more, where a clip then has fewer frames over.
_MORE_FRAMES = 8

# What a segment more has to save, as a part of the decoder's work: it is a program more, and buffers of frames, as
# a part of the states, which any cuts hold.
_PRICE_OF_A_SEGMENT = 0.002
_PRICE_OF_BUFFERS = 0.01


@dataclass(frozen=True)
class Cut:
    """A segment: how many units, and how many frames a call takes."""

    units: int
    chunk: int


@dataclass(frozen=True)
class PassCut:
    """Segments that run together, on the whole frame or strip by strip."""

    cuts: tuple[Cut, ...]
    strips: int = 1


@dataclass(frozen=True)
class _Layer:
    """A unit: where the clip stands behind it, against its own input, and operations per frame of that.

    Attributes:
        ahead: as `Layer.early`.
        taken, given: elements of a frame of its input and its output.
        states: elements of its states.
    """

    ahead: int
    end: Timeline
    operations: float
    taken: int
    given: int
    states: int


def default_cuts(model: nn.Module, frames: int, chunk: int = 1) -> tuple[PassCut, ...]:
    """One pass over the whole frame, fast rather than small.

    A segment's first calls compute frames before the clip, as many as it looks ahead behind its first convolution,
    and its last call frames behind it. The less of that, the better; it counts little where frames are small, so
    that the first units become one segment.

    A causal decoder takes exactly `chunk` latent frames at a time in all of its segments, so that frames come with
    their latent.

    Args:
        frames: latent frames of the clips that the work is counted for.
        chunk: frames that a segment's call takes at the least; or 4, if that is more, in one that is not causal.
    """
    if chunk < 1:
        raise ExportError(f"chunk is {chunk}; the least number of frames of a call is needed, 1 or more.")
    layers = _layers(model)
    lengths = [frames]
    for layer in layers:
        lengths.append(layer.end.length(lengths[-1]))
    total = sum(length * layer.operations for length, layer in zip(lengths, layers))
    states = sum(layer.states for layer in layers)
    # By units: what the best cuts of so many waste, and they.
    least: list[tuple[float, tuple[Cut, ...]]] = [(0.0, ())]
    rates = [chunk]
    causal = is_causal(units_of(model).values())
    least_frames = max(chunk, _LEAST_FRAMES)
    sizes = range(least_frames, least_frames + _MORE_FRAMES + 1)
    for stop in range(1, len(layers) + 1):
        rates.append(rates[-1] * layers[stop - 1].end.rate)
        found: list[tuple[float, tuple[Cut, ...]]] = []
        for start in range(stop):
            wasted, cuts = least[start]
            for n in [rates[start]] if causal else sizes:
                buffers = n * layers[start].taken + n * rates[stop] // rates[start] * layers[stop - 1].given
                price = (_PRICE_OF_A_SEGMENT + _PRICE_OF_BUFFERS * buffers / states) * total
                own = _wasted(layers[start:stop], lengths[start], n) + price
                found.append((wasted + own, (*cuts, Cut(stop - start, n))))
        least.append(min(found, key=lambda one: one[0]))
    return (PassCut(least[-1][1]),)


def unit_work(model: nn.Module) -> list[float]:
    """Operations of each unit per latent frame of a long clip, for latents of 8x8."""
    work, rate = [], 1
    for layer in _layers(model):
        work.append(layer.operations * rate)
        rate *= layer.end.rate
    return work


def _layers(model: nn.Module) -> list[_Layer]:
    # Shapes without values; any size of frame gives the same ratios.
    units = units_of(on_meta(model)).values()
    x = torch.empty(1, spec_of(model).channels, _LEAST_FRAMES, 8, 8, device="meta")
    layers = []
    for unit in units:
        flow, taken = Survey(), x[0, :, 0].numel()
        with torch.no_grad(), counting_multiply_adds() as counted:
            x = unit.run(x, flow)[:, :, :_LEAST_FRAMES]
        operations = counted() / _LEAST_FRAMES
        states = sum(map(math.prod, flow.states))
        layers.append(_Layer(unit.early, flow.at, operations, taken, x[0, :, 0].numel(), states))
    return layers


def _wasted(layers: Sequence[_Layer], frames: int, chunk: int) -> float:
    """Operations on frames that are not the clip's, of a segment of these layers."""
    at, operations = Timeline(delay=-layers[0].ahead), 0.0
    for layer in layers:
        operations += at.rate * layer.operations
        at = at.then(layer.end)
    calls = -(-(at.length(frames) + at.delay) // (chunk * at.rate))
    return operations * (calls * chunk - frames)
