"""A fixed pool of clips that the teacher sees once: frames, latents and perhaps features, as shards on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from handheld.files import save_tensors

from ..errors import DistillError
from .clips import ClipRule, draw, from_pixels, generator, pixels_of
from .split import Split

if TYPE_CHECKING:
    from handheld.models.teachers import Teacher

POOL = 3  # the purpose of these random numbers, see batches.py
SHARD_CLIPS = 16
FORMAT_VERSION = 1

Entry = dict[str, Tensor]  # `frames` uint8 (3, T, H, W), `latents` (C, T', H', W'), a feature map per tap


class Pool:
    """Read access to the clips of verified shards. Shards are memory-mapped, so memory holds what is in use."""

    def __init__(self, shards: Sequence[Path], clips: int) -> None:
        from safetensors import safe_open

        self._clips = clips
        self._shards = [safe_open(shard, "pt") for shard in shards]
        self._names = [_by_clip(shard.keys()) for shard in self._shards]

    def __len__(self) -> int:
        return self._clips

    def __getitem__(self, index: int) -> Entry:
        shard, place = divmod(index, SHARD_CLIPS)
        names = self._names[shard][place]
        return {name: self._shards[shard].get_tensor(f"{place}.{name}") for name in names}


def build_pool(
    teacher: Teacher,
    split: Split,
    rule: ClipRule,
    folder: Path,
    *,
    clips_per_video: int,
    taps: Sequence[str],
    seed: int,
    device: torch.device,
    on_clip: Callable[[int, int], None],
    on_message: Callable[[str], None],
) -> Pool:
    """Encode `clips_per_video` random clips of every video, or take them from `folder`.

    A shard is taken if it is whole, its content has the hash that it was written with, and it was made by the same
    teacher from the same videos with the same rule; otherwise it is made anew, with a message.
    """
    total = clips_per_video * len(split.train)
    key = _key(teacher, split, rule, clips_per_video, sorted(set(taps)), seed)
    shards = [folder / f"pool-{number:05d}.safetensors" for number in range(-(-total // SHARD_CLIPS))]
    for number, shard in enumerate(shards):
        first, last = number * SHARD_CLIPS, min((number + 1) * SHARD_CLIPS, total)
        fault = _fault(shard, key) if shard.exists() else ""
        if fault is None:
            continue
        if fault:
            on_message(f"{shard.name} in the cache is {fault}: its clips are encoded again.")
        tensors: dict[str, Tensor] = {}
        for index in range(first, last):
            on_clip(index, total)
            span = split.train[index % len(split.train)]
            clip = draw(generator(seed, POOL, index), split.footage, [span], rule)
            pixels = pixels_of(split.footage, clip, frames=rule.frames, crop=rule.crop)
            entry = {"frames": pixels, **_teach(teacher, from_pixels(pixels.to(device))[None], taps)}
            tensors |= {f"{index - first}.{name}": tensor.cpu() for name, tensor in entry.items()}
        metadata = {"handheld": json.dumps({"key": key, "sha256": _digest(tensors)})}
        save_tensors(shard, tensors, DistillError, metadata=metadata, make_folder=True)
    on_clip(total, total)
    return Pool(shards, total)


def teacher_features(teacher: Teacher, latents: Tensor, taps: Iterable[str]) -> dict[str, Tensor]:
    """The named feature maps of the teacher's decoder; without names it is not run."""
    taps = set(taps)
    if not taps:
        return {}
    _, features = teacher.decode_with_features(latents)
    return {tap: features[tap] for tap in sorted(taps)}


def _teach(teacher: Teacher, frames: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
    latents = teacher.encode(frames)
    return {"latents": latents[0], **{tap: x[0] for tap, x in teacher_features(teacher, latents, taps).items()}}


def _key(teacher: Teacher, split: Split, rule: ClipRule, clips_per_video: int, taps: list[str], seed: int) -> str:
    spans = [(span.video, span.start, span.stop) for span in split.train]
    teacher_sha256 = teacher.weights_sha256
    facts = [FORMAT_VERSION, teacher_sha256, split.fingerprint, spans, repr(rule), clips_per_video, taps, seed]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _fault(shard: Path, key: str) -> str | None:
    """What is wrong with a shard, or None."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, "pt") as file:
            facts = json.loads((file.metadata() or {})["handheld"])
            if facts["key"] != key:
                return "of another teacher, recipe or set of videos"
            digest = _digest({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError):
        return "truncated or not a shard"
    return None if digest == facts["sha256"] else "corrupt"


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _by_clip(keys: Sequence[str]) -> dict[int, list[str]]:
    """`3.latents` and its like, grouped by clip."""
    grouped: dict[int, list[str]] = {}
    for key in sorted(keys):
        place, _, name = key.partition(".")
        grouped.setdefault(int(place), []).append(name)
    return grouped
