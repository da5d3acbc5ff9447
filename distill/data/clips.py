"""Where clips are in decoded videos: drawing such places at random, and reading their pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .videos import Footage


@dataclass(frozen=True)
class Span:
    """Frames `start` (included) to `stop` (excluded) of video number `video` of a Footage."""

    video: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class ClipRule:
    """How clips are drawn; the fields are those of `DataSection` with the same names."""

    frames: int
    crop: int
    stride: tuple[int, int] = (1, 1)
    flip: bool = False
    zoom: bool = False

    @property
    def length(self) -> int:
        """Video frames that the shortest clip covers."""
        return (self.frames - 1) * self.stride[0] + 1


@dataclass(frozen=True)
class ClipPlace:
    """Where a clip is: `video[start :: stride]`, the square of `side` pixels at (`top`, `left`), maybe mirrored."""

    video: int
    start: int
    stride: int
    top: int
    left: int
    side: int
    flip: bool = False


def generator(*entropy: int) -> np.random.Generator:
    """A generator of random numbers that depends only on `entropy`: the seed, a purpose, an index."""
    return np.random.default_rng(entropy)


def draw(rng: np.random.Generator, footage: Footage, spans: Sequence[Span], rule: ClipRule) -> ClipPlace:
    """A random clip: every span is equally likely, and within it every start, stride and place.

    With `rule.zoom` the logarithm of the square's side is uniform between the crop and the frame's short side.
    Spans must hold at least `rule.length` frames.
    """
    span = spans[int(rng.integers(len(spans)))]
    height, width = footage.arrays[span.video].shape[1:3]
    low, high = rule.stride
    if rule.frames > 1:
        high = min(high, (len(span) - 1) // (rule.frames - 1))
    stride = int(rng.integers(low, high + 1))
    start = span.start + int(rng.integers(len(span) - (rule.frames - 1) * stride))
    side = rule.crop
    if rule.zoom:
        side = round(math.exp(rng.uniform(math.log(side), math.log(min(height, width)))))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    return ClipPlace(span.video, start, stride, top, left, side, flip=rule.flip and bool(rng.integers(2)))


def spread(footage: Footage, spans: Sequence[Span], rule: ClipRule, count: int) -> list[ClipPlace]:
    """At most `count` fixed clips that do not overlap: lowest stride, middle of the frame, not mirrored.

    Spans take turns, and within a span the clips are as far apart as they can be. With `rule.zoom` their scale is
    the middle of the range.
    """
    room = [len(span) // rule.length for span in spans]
    taken = [0] * len(spans)
    while sum(taken) < min(count, sum(room)):
        open_spans = [index for index in range(len(spans)) if taken[index] < room[index]]
        taken[min(open_spans, key=lambda index: taken[index])] += 1
    clips = []
    for span, number in zip(spans, taken):
        height, width = footage.arrays[span.video].shape[1:3]
        side = round(math.sqrt(rule.crop * min(height, width))) if rule.zoom else rule.crop
        for index in range(number):
            start = span.start + index * (len(span) // number) + (len(span) // number - rule.length) // 2
            clips.append(
                ClipPlace(span.video, start, rule.stride[0], (height - side) // 2, (width - side) // 2, side)
            )
    return clips


def pixels_of(footage: Footage, clip: ClipPlace, *, frames: int, crop: int) -> Tensor:
    """The pixels of a clip: uint8 RGB (3, T, crop, crop)."""
    stop = clip.start + (frames - 1) * clip.stride + 1
    rows, columns = slice(clip.top, clip.top + clip.side), slice(clip.left, clip.left + clip.side)
    window = footage.arrays[clip.video][clip.start : stop : clip.stride, rows, columns]
    pixels = torch.from_numpy(np.array(window)).permute(0, 3, 1, 2)
    if clip.side != crop:
        resized = torch.nn.functional.interpolate(
            pixels.float(), size=(crop, crop), mode="bilinear", antialias=True, align_corners=False
        )
        pixels = resized.round().clamp(0, 255).to(torch.uint8)
    if clip.flip:
        pixels = pixels.flip(-1)
    return pixels.permute(1, 0, 2, 3).contiguous()


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 [0, 255] to float32 [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(frames: Tensor) -> Tensor:
    """float [-1, 1] (clamped) to uint8 [0, 255]."""
    return ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
