"""Which frames are trained on and which are held out; the two never overlap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError
from ..recipe import DataSection
from .clips import ClipRule, Span
from .videos import Footage, Skipped, VideoSet, decode, scan


@dataclass(frozen=True)
class Split:
    """Decoded videos and the spans of them that are trained on and held out."""

    footage: Footage
    train: tuple[Span, ...]
    held_out: tuple[Span, ...]
    skipped: tuple[Skipped, ...]
    fingerprint: str


def clip_rule(data: DataSection) -> ClipRule:
    """How training clips are drawn."""
    return ClipRule(data.frames, data.crop, data.stride, data.flip, data.zoom)


def held_out_rule(data: DataSection) -> ClipRule:
    """How held-out clips are laid out."""
    return replace(clip_rule(data), crop=data.held_out_crop or data.crop)


def load(data: DataSection, folder: Path, on_video: Callable[[int, int], None]) -> Split:
    """Read the videos of a recipe (decoded into `folder`) and split them.

    A held-out share takes whole videos, spread over the sorted list, where it is worth at least one; otherwise the
    end of every video, if at least one clip fits both before and after the cut. Raises DataError where either
    part would be empty.
    """
    rule = clip_rule(data)
    if not data.videos:
        raise DataError("No videos given: name files or folders with --videos or under data.videos in the recipe.")
    videos = scan(data.videos)
    share, apart = data.held_out, VideoSet(())
    if isinstance(share, str):
        apart = scan([share])
        videos = videos.without(apart.paths)
        if not videos.paths:
            raise DataError(f"Every video is in the held-out folder {share}: nothing is left to train on.")
        # A held-out folder may lie within a folder of videos: what both skip is told once.
        videos = VideoSet(videos.paths + apart.paths, tuple(dict.fromkeys(videos.skipped + apart.skipped)))
    footage = decode(
        videos,
        folder,
        short_side=data.short_side or data.crop,
        crop=max(data.crop, data.held_out_crop or 0),
        max_frames=data.max_frames,
        min_frames=rule.length,
        on_video=on_video,
    )
    whole = [Span(index, 0, len(array)) for index, array in enumerate(footage.arrays)]
    if isinstance(share, str):
        train = [span for span in whole if footage.paths[span.video] not in apart.paths]
        held_out = [span for span in whole if footage.paths[span.video] in apart.paths]
    else:
        train, held_out = _share(whole, share, rule.length)
    if not train or not held_out:
        part = "train on" if not train else "hold out"
        raise DataError(
            f"Nothing is left to {part}: {len(whole)} usable videos of {min(map(len, whole))} to "
            f"{max(map(len, whole))} frames, clips of {rule.length} frames, data.held_out: {data.held_out}. "
            "Give more or longer videos, shorter clips (data.frames, data.stride) or another data.held_out."
        )
    return Split(footage, tuple(train), tuple(held_out), videos.skipped + footage.skipped, videos.fingerprint)


def _share(whole: list[Span], share: float, length: int) -> tuple[list[Span], list[Span]]:
    count = round(share * len(whole))
    if 1 <= count < len(whole):
        step = len(whole) / count
        chosen = {int((index + 0.5) * step) for index in range(count)}
        return [s for i, s in enumerate(whole) if i not in chosen], [s for i, s in enumerate(whole) if i in chosen]
    train, held_out = [], []
    for span in whole:
        cut = len(span) - max(length, math.ceil(share * len(span)))
        if cut >= length:
            held_out.append(Span(span.video, cut, span.stop))
            span = Span(span.video, 0, cut)
        train.append(span)
    return train, held_out
