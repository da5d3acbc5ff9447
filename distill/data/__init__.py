"""Video data: reading, splitting, cutting clips, and what the teacher makes of them."""

from .batches import Batch, Batches, PoolBatches, TeacherBatches
from .clips import Clip, ClipRule, Span, cut, draw, generator, spread, to_frames, to_pixels
from .pool import Pool, build_pool, teacher_features
from .split import Split, clip_rule, held_out_rule, load
from .videos import Footage, Skipped, VideoSet, decode, listed, scan

__all__ = [
    "Batch",
    "Batches",
    "Clip",
    "ClipRule",
    "Footage",
    "Pool",
    "PoolBatches",
    "Skipped",
    "Span",
    "Split",
    "TeacherBatches",
    "VideoSet",
    "build_pool",
    "clip_rule",
    "cut",
    "decode",
    "draw",
    "generator",
    "held_out_rule",
    "listed",
    "load",
    "scan",
    "spread",
    "teacher_features",
    "to_frames",
    "to_pixels",
]
