"""Rows of weights as the engine stores them: fp32, fp16, or integers with fp16 scales per group of a row.

A stored row is its weights followed by what belongs to each group: a scale (int8, int4), or a scale and a minimum
(int4m). Nibbles are packed in blocks of 32: byte j holds weights j (low) and j + 16 (high). An int4 weight is
(nibble - 8) times the scale; an int4m weight is nibble times the scale, plus the minimum, as GGUF's Q4_1. A ternary
selector's rows hold -1, 0, 1 or 2 plus 1 in two bits; byte j of a block of 32 holds weights j, j + 8, j + 16 and
j + 24, from the low bits up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import RuntimeFailure

BLOCK = 32  # weights that the native kernels treat at once
GROUPED = ("int8", "int4", "int4m")  # the dtypes whose groups of weights have a scale


@dataclass(frozen=True)
class StoredRows:
    """Rows that are quantised already: data (n, row_bytes) uint8, as `encode_rows` gives them for rows of d."""

    data: np.ndarray
    dtype: str
    d: int
    group_size: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.data), self.d

    def __getitem__(self, ids: np.ndarray) -> StoredRows:
        return StoredRows(self.data[ids], self.dtype, self.d, self.group_size)

    def decode(self) -> np.ndarray:
        """(n, d) fp32."""
        return decode_rows(self.data, self.dtype, self.d, self.group_size)


Rows = np.ndarray | StoredRows


def weight_bytes(dtype: str, d: int) -> int:
    """Bytes of d stored weights, without scales and minimums."""
    return {"fp32": 4 * d, "fp16": 2 * d, "int8": d, "int4": d // 2, "int4m": d // 2}[dtype]


def row_bytes(dtype: str, d: int, group_size: int) -> int:
    """Bytes of a stored row of d weights, scales and minimums included."""
    if dtype not in GROUPED:
        return weight_bytes(dtype, d)
    return weight_bytes(dtype, d) + (4 if dtype == "int4m" else 2) * (d // group_size)


def encode_rows(rows: Rows, dtype: str, group_size: int) -> np.ndarray:
    """(n, d) floats -> (n, row_bytes) uint8; rows that are stored so already come through as they are.

    Raises RuntimeFailure for values that the dtype cannot hold."""
    if isinstance(rows, StoredRows) and (rows.dtype, rows.group_size) == (dtype, group_size):
        return rows.data
    rows = np.ascontiguousarray(as_floats(rows), dtype=np.float32)
    if not np.isfinite(rows).all():
        raise RuntimeFailure("The weights hold NaN or infinity. Check the checkpoint.")
    if dtype == "fp32":
        return rows.astype("<f4", copy=False).view(np.uint8)
    if dtype == "fp16":
        return _to_half(rows).view(np.uint8)
    groups = rows.reshape(len(rows), -1, group_size)
    if dtype == "int4m":
        minimums = _to_half(groups.min(axis=2))
        above = groups - minimums.astype(np.float32)[..., None]
        scales = _to_half(above.max(axis=2).clip(0) / 15)
        codes = _divide(above, scales).clip(0, 15).astype(np.uint8)
        return join_int4m(codes.reshape(rows.shape), scales, minimums)
    weights: np.ndarray
    if dtype == "int8":
        scales = _to_half(np.abs(groups).max(axis=2) / 127)
        weights = _divide(groups, scales).clip(-127, 127).astype(np.int8).view(np.uint8).reshape(rows.shape)
    else:
        # The largest weight of a group, sign included, takes the code -8, which has no positive counterpart.
        extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)[..., 0]
        scales = _to_half(extreme / -8)
        weights = _pack_nibbles((_divide(groups, scales).clip(-8, 7) + 8).astype(np.uint8).reshape(rows.shape))
    return np.concatenate([weights, scales.view(np.uint8)], axis=1)


def join_int4m(codes: np.ndarray, scales: np.ndarray, minimums: np.ndarray) -> np.ndarray:
    """Stored int4m rows of weights that are quantised already: codes (n, d) uint8 0..15, scales and minimums
    (n, d / group size) fp16 -> (n, row_bytes) uint8. The blocks of a GGUF's Q4_1 rows, group size 32, come through
    this without loss."""
    pairs = np.stack([scales, minimums], axis=2).astype("<f2", copy=False)
    return np.concatenate([_pack_nibbles(codes), pairs.reshape(len(codes), -1).view(np.uint8)], axis=1)


def join_scaled(dtype: str, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Stored int8 or int4 rows of weights that are quantised already: codes (n, d) int8, in [-127, 127] or [-8, 7],
    and scales (n, d / group size) fp16 -> (n, row_bytes) uint8. The blocks of a GGUF's Q8_0 and Q4_0 rows, group
    size 32, come through this without loss; -128, which Q8_0 has room for and its writers do not use, becomes
    -127."""
    if dtype == "int8":
        weights = np.maximum(codes, np.int8(-127)).view(np.uint8)
    else:
        weights = _pack_nibbles((codes + np.int8(8)).view(np.uint8))
    return np.concatenate([weights, np.ascontiguousarray(scales, "<f2").view(np.uint8)], axis=1)


def decode_rows(stored: np.ndarray, dtype: str, d: int, group_size: int) -> np.ndarray:
    """(n, row_bytes) uint8 -> (n, d) fp32: exactly the weights that the engine computes with."""
    stored = np.ascontiguousarray(stored)
    if dtype == "fp32":
        return stored.view("<f4")
    if dtype == "fp16":
        return stored.view(np.float16).astype(np.float32)
    weights, tail = np.split(stored, [weight_bytes(dtype, d)], axis=1)
    # (n, groups, 1 or 2): scales, then minimums.
    halves = np.ascontiguousarray(tail).view("<f2").astype(np.float32).reshape(len(stored), d // group_size, -1)
    if dtype == "int8":
        return weights.view(np.int8).astype(np.float32) * halves[..., 0].repeat(group_size, axis=1)
    packed = weights.reshape(len(stored), -1, 16)
    values = np.concatenate([packed & 15, packed >> 4], axis=2).astype(np.float32).reshape(len(stored), d)
    if dtype == "int4":
        return (values - 8) * halves[..., 0].repeat(group_size, axis=1)
    return values * halves[..., 0].repeat(group_size, axis=1) + halves[..., 1].repeat(group_size, axis=1)


def as_floats(rows: Rows) -> np.ndarray:
    """(n, d) floats of rows that may be stored ones."""
    return rows.decode() if isinstance(rows, StoredRows) else rows


def encode_ternary(rows: np.ndarray, group_size: int) -> np.ndarray:
    """(n, d) floats -> (n, d / 4 + 2 d / group_size) uint8: weights over 0.7 of their group's mean magnitude keep
    their sign and share one magnitude, the mean of theirs; the others are zero (ternary weight networks,
    arXiv 1605.04711)."""
    groups = np.ascontiguousarray(rows, dtype=np.float32).reshape(len(rows), -1, group_size)
    magnitudes = np.abs(groups)
    kept = magnitudes > 0.7 * magnitudes.mean(axis=2, keepdims=True)
    scales = _to_half((magnitudes * kept).sum(axis=2) / np.maximum(kept.sum(axis=2), 1))
    return join_ternary((np.sign(groups) * kept).astype(np.int8).reshape(rows.shape), scales)


def join_ternary(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Stored rows of two bits a weight: codes (n, d) int8, -1 to 2, and scales (n, d / group size) fp16 ->
    (n, d / 4 + 2 d / group size) uint8."""
    blocks = (codes + np.int8(1)).view(np.uint8).reshape(len(codes), -1, 4, BLOCK // 4)
    packed = blocks[:, :, 0] | blocks[:, :, 1] << 2 | blocks[:, :, 2] << 4 | blocks[:, :, 3] << 6
    halves = np.ascontiguousarray(scales, "<f2").view(np.uint8)
    return np.concatenate([packed.reshape(len(codes), -1), halves], axis=1)


def decode_ternary(stored: np.ndarray, d: int, group_size: int) -> np.ndarray:
    """What stored two-bit rows stand for: (n, d) fp32."""
    codes, scales = np.split(stored, [d // 4], axis=1)
    packed = codes.reshape(len(stored), -1, 1, BLOCK // 4) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    values = (packed & 3).astype(np.float32).reshape(len(stored), d) - 1
    return values * np.repeat(np.ascontiguousarray(scales).view(np.float16).astype(np.float32), group_size, axis=1)


def _pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """(n, d) uint8 0..15 -> (n, d / 2) uint8."""
    blocks = codes.reshape(len(codes), -1, BLOCK)
    return (blocks[..., : BLOCK // 2] | blocks[..., BLOCK // 2 :] << 4).reshape(len(codes), -1)


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
