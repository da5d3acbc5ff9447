"""Rows of weights as the engine stores them: fp16, or int8 and int4 with one fp16 scale per group of a row.

A stored row is its weights followed by its scales. int4 packs blocks of 32: byte j holds weights j (low nibble) and
j + 16 (high), each plus 8. Ternary rows hold -1, 0, 1 plus 1 in two bits; byte j of a block of 32 holds weights j,
j + 8, j + 16 and j + 24, from the low bits up.
"""

from __future__ import annotations

import numpy as np

from ..errors import RuntimeFailure

BLOCK = 32  # weights that the native kernels treat at once


def row_bytes(dtype: str, d: int, group_size: int) -> int:
    """Bytes of a stored row of d weights, scales included."""
    weights = {"fp16": 2 * d, "int8": d, "int4": d // 2}[dtype]
    return weights if dtype == "fp16" else weights + 2 * (d // group_size)


def encode_rows(rows: np.ndarray, dtype: str, group_size: int) -> np.ndarray:
    """(n, d) floats -> (n, row_bytes) uint8. Raises RuntimeFailure for values that the dtype cannot hold."""
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise RuntimeFailure("The weights hold NaN or infinity. Check the checkpoint.")
    if dtype == "fp16":
        halves = _to_half(rows)
        return halves.view(np.uint8)
    groups = rows.reshape(len(rows), -1, group_size)
    weights: np.ndarray
    if dtype == "int8":
        scales = _to_half(np.abs(groups).max(axis=2) / 127)
        weights = _divide(groups, scales).clip(-127, 127).astype(np.int8).view(np.uint8).reshape(rows.shape)
    else:
        # The largest weight of a group, sign included, takes the code -8, which has no positive counterpart.
        extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)[..., 0]
        scales = _to_half(extreme / -8)
        codes = (_divide(groups, scales).clip(-8, 7) + 8).astype(np.uint8).reshape(len(rows), -1, BLOCK)
        weights = (codes[..., :16] | codes[..., 16:] << 4).reshape(len(rows), -1)
    return np.concatenate([weights, scales.view(np.uint8)], axis=1)


def decode_rows(stored: np.ndarray, dtype: str, d: int, group_size: int) -> np.ndarray:
    """(n, row_bytes) uint8 -> (n, d) fp32: exactly the weights that the engine computes with."""
    stored = np.ascontiguousarray(stored)
    if dtype == "fp16":
        return stored.view(np.float16).astype(np.float32)
    split = d if dtype == "int8" else d // 2
    weights, scales = np.split(stored, [split], axis=1)
    if dtype == "int8":
        values: np.ndarray = weights.view(np.int8).astype(np.float32)
    else:
        packed = weights.reshape(len(stored), -1, 16)
        values = np.concatenate([packed & 15, packed >> 4], axis=2).astype(np.float32).reshape(len(stored), d) - 8
    return values * np.repeat(np.ascontiguousarray(scales).view(np.float16).astype(np.float32), group_size, axis=1)


def encode_ternary(rows: np.ndarray, group_size: int) -> np.ndarray:
    """(n, d) floats -> (n, d / 4 + 2 d / group_size) uint8: weights over 0.7 of their group's mean magnitude keep
    their sign and share one magnitude, the mean of theirs; the others are zero (ternary weight networks,
    arXiv 1605.04711)."""
    groups = np.ascontiguousarray(rows, dtype=np.float32).reshape(len(rows), -1, group_size)
    magnitudes = np.abs(groups)
    kept = magnitudes > 0.7 * magnitudes.mean(axis=2, keepdims=True)
    scales = _to_half((magnitudes * kept).sum(axis=2) / np.maximum(kept.sum(axis=2), 1))
    codes = (np.sign(groups) * kept + 1).astype(np.uint8).reshape(len(rows), -1, 4, BLOCK // 4)
    packed = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
    return np.concatenate([packed.reshape(len(rows), -1), scales.view(np.uint8)], axis=1)


def decode_ternary(stored: np.ndarray, d: int, group_size: int) -> np.ndarray:
    """The inverse of `encode_ternary`: (n, d) fp32."""
    codes, scales = np.split(stored, [d // 4], axis=1)
    packed = codes.reshape(len(stored), -1, 1, BLOCK // 4) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    values = (packed & 3).astype(np.float32).reshape(len(stored), d) - 1
    return values * np.repeat(np.ascontiguousarray(scales).view(np.float16).astype(np.float32), group_size, axis=1)


def _divide(groups: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Rounded groups / scales, by the scales as they are stored; a group of zeros stays zero."""
    steps = scales.astype(np.float32)[..., None]
    return np.rint(groups / np.where(steps == 0, np.inf, steps))


def _to_half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise RuntimeFailure(
            "The weights are too large for fp16 scales (above 65504). Rescale the model or check the checkpoint."
        )
    return halves
