"""The rewrites that every target applies first: norms, attention, shuffles and spellings of whole patterns.

Targets list what follows themselves, since there they differ.
"""

from __future__ import annotations

from ..graph.rewrite import Rewrite
from . import (
    causal_attention,
    channel_layer_norm,
    channel_rms_norm,
    depth_to_space,
    group_norm,
    low_rank_permute,
    nearest_frames,
    pad_conv,
    pad_time,
    plain_spelling,
    replicate_pad,
    safe_rms_norm,
    split_channels,
    unit_norm,
)


def first(*, half: bool = False, stacked: bool = False, norms: bool = False) -> tuple[Rewrite, ...]:
    """The list.

    Args:
        half: for computation in fp16, in which norms need a form that neither overflows nor underflows.
        stacked: for runtimes that take a clip as one tall picture, not with frames as a batch.
        norms: for runtimes with a group norm of their own for pictures, which is taken in fp32.
    """
    if norms and not half:
        groups = group_norm.CLIPS
    elif stacked:
        groups = group_norm.SAFE_STACKED if half else group_norm.STACKED
    else:
        groups = group_norm.SAFE if half else group_norm.PLAIN
    return (
        # Before plain_spelling, which spells their selections and stacks in another way.
        split_channels.REWRITE,
        unit_norm.SAFE if half else unit_norm.PLAIN,
        plain_spelling.REWRITE,
        # Before safe_rms_norm, which takes the norm that it leaves.
        channel_rms_norm.REWRITE,
        *((safe_rms_norm.REWRITE,) if half else ()),
        channel_layer_norm.REWRITE,
        groups,
        causal_attention.REWRITE,
        # Before low_rank_permute, which would take its permutation alone.
        depth_to_space.REWRITE,
        nearest_frames.STACKED if stacked else nearest_frames.CLIPS,
        replicate_pad.STACKED if stacked else replicate_pad.REWRITE,
        low_rank_permute.REWRITE,
        # Before any rewrite of convolutions.
        pad_conv.ZEROS,
        pad_time.REWRITE,
    )
