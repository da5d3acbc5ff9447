"""The rewrites, one file each. Targets import them by name; the parity tests run every case of this table."""

from . import (
    batch_in_time,
    cancel_layouts,
    channel_layer_norm,
    channel_mean,
    conv3d_taps,
    conv_stacked,
    interleave_frames,
    merge_border_taps,
    pixel_shuffle,
    safe_rms_norm,
    split_silu,
    stack_frames,
    temporal_winograd,
)

REWRITES = (
    batch_in_time.REWRITE,
    cancel_layouts.REWRITE,
    channel_layer_norm.REWRITE,
    channel_mean.REWRITE,
    conv3d_taps.REWRITE,
    conv_stacked.CONV2D,
    conv_stacked.CONV3D,
    interleave_frames.REWRITE,
    interleave_frames.STACKED,
    merge_border_taps.REWRITE,
    pixel_shuffle.FRAMES,
    pixel_shuffle.PERMUTED,
    pixel_shuffle.STACKED,
    safe_rms_norm.REWRITE,
    split_silu.REWRITE,
    stack_frames.REWRITE,
    *temporal_winograd.REWRITES,
    *temporal_winograd.POINTWISE,
)
