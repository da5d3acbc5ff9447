"""The rewrites, one file each. Targets import them by name; the parity tests run every case of this table."""

from . import (
    batch_in_time,
    cancel_layouts,
    channel_layer_norm,
    channel_mean,
    conv3d_concat,
    conv3d_taps,
    interleave_frames,
    merge_border_taps,
    pixel_shuffle,
    safe_rms_norm,
    split_silu,
    temporal_winograd,
)

REWRITES = (
    batch_in_time.REWRITE,
    cancel_layouts.REWRITE,
    channel_layer_norm.REWRITE,
    channel_mean.REWRITE,
    conv3d_concat.REWRITE,
    conv3d_taps.REWRITE,
    interleave_frames.REWRITE,
    merge_border_taps.REWRITE,
    pixel_shuffle.FRAMES,
    pixel_shuffle.PERMUTED,
    safe_rms_norm.REWRITE,
    split_silu.REWRITE,
    temporal_winograd.REWRITE,
    temporal_winograd.POINTWISE,
)
