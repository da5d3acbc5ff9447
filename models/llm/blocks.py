"""Matrices as GGUF files quantise them, kept as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK_COLUMNS = 32


@dataclass(frozen=True)
class Blocks:
    """A matrix whose rows are cut into blocks of 32 columns: weight = scale * code (+ minimum).

    codes: (rows, columns), int8 with 8 bits, int8 in [-8, 7] with 4, uint8 in [0, 15] where there are minimums.
    scales, minimums: (rows, columns / 32) fp16. Q8_0, Q4_0 and Q4_1 of GGUF, in this order.
    """

    bits: int
    codes: np.ndarray
    scales: np.ndarray
    minimums: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def rows(self, ids: np.ndarray) -> Blocks:
        """Those rows, in that order."""
        minimums = None if self.minimums is None else self.minimums[ids]
        return Blocks(self.bits, self.codes[ids], self.scales[ids], minimums)

    def dense(self) -> np.ndarray:
        """(rows, columns) fp32."""
        rows, columns = self.shape
        values = self.codes.astype(np.float32).reshape(rows, -1, BLOCK_COLUMNS)
        values *= self.scales.astype(np.float32)[..., None]
        if self.minimums is not None:
            values += self.minimums.astype(np.float32)[..., None]
        return values.reshape(rows, columns)


def dense(tensor: np.ndarray | Blocks) -> np.ndarray:
    """fp32, whatever the tensor is stored as."""
    return tensor.dense() if isinstance(tensor, Blocks) else tensor.astype(np.float32, copy=False)
