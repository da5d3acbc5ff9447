"""Video data: reading, splitting, cutting clips, and what the teacher makes of them."""

from .batches import Batch, Batches, PoolBatches, TeacherBatches
from .clips import ClipPlace, ClipRule, Span, draw, from_pixels, generator, pixels_of, spread, to_pixels
from .pool import Pool, build_pool, teacher_features
from .split import Split, clip_rule, held_out_rule, load
from .videos import Footage, Skipped, VideoSet, decode, listed, scan

__all__ = [
    "Batch",
    "Batches",
    "ClipPlace",
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
    "decode",
    "draw",
    "from_pixels",
    "generator",
    "held_out_rule",
    "listed",
    "load",
    "pixels_of",
    "scan",
    "spread",
    "teacher_features",
    "to_pixels",
]
