"""Rounding weights to few bits so that products with the inputs that occur stay close.

Rounding each weight to the nearest code makes errors add up in directions in which inputs are large. Here a row's
columns are rounded one after the other, and what is lost is made up for by those that are still to come, weighed by
the inputs' second moments (GPTQ, arXiv 2210.17323).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_DAMPING = 1e-2  # of the mean of the moments' diagonal
_CLIPPING = (0.4, 0.55, 0.7, 0.85, 1.0)  # scales to try, as shares of the one that holds the largest weight


def round_rows(
    weights: np.ndarray, moments: Tensor, group_size: int, lowest: int, highest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows as codes in [lowest, highest] times a scale per group of columns.

    weights: (n, d) fp32. moments: (d, d), the mean of x x^T over inputs x. highest is at least -lowest; scales take
    either sign. Returns (n, d) int8 codes and (n, d / group_size) fp16 scales.
    """
    left = torch.tensor(weights)
    size = moments.shape[0]
    damping = _DAMPING * moments.diagonal().mean() + torch.finfo(torch.float32).tiny
    inverse = torch.linalg.inv(moments.double() + damping * torch.eye(size, dtype=torch.float64))
    # Row j: how an error in column j is best spread over the columns after it.
    spread = torch.linalg.cholesky(inverse, upper=True).float()
    costs = spread.diagonal().pow(-2)
    codes = torch.empty(left.shape, dtype=torch.int8)
    scales = torch.empty(len(left), size // group_size, dtype=torch.float16)
    for group, first in enumerate(range(0, size, group_size)):
        last = first + group_size
        fitted = _fit_scales(left[:, first:last], costs[first:last], lowest, highest).half()
        scales[:, group] = fitted
        steps = fitted.float()
        safe = torch.where(steps == 0, torch.inf, steps)
        errors = torch.empty(len(left), group_size)
        for column in range(first, last):
            rounded = (left[:, column] / safe).round_().clamp_(lowest, highest)
            codes[:, column] = rounded.to(torch.int8)
            error = (left[:, column] - rounded * steps) / spread[column, column]
            errors[:, column - first] = error
            left[:, column + 1 : last].addr_(error, spread[column, column + 1 : last], alpha=-1)
        left[:, last:].addmm_(errors, spread[first:last, last:], alpha=-1)
    return codes.numpy(), scales.numpy()


def _fit_scales(weights: Tensor, costs: Tensor, lowest: int, highest: int) -> Tensor:
    """(n,) scales of one group, of which weights are (n, group_size): of some tries, each refined by least squares,
    the one with the least error. The largest weight, sign included, is on the side of `highest`."""
    extreme = weights.gather(1, weights.abs().argmax(1, keepdim=True))
    best = torch.zeros_like(extreme)
    least = torch.full_like(extreme, torch.inf)

    def rounded(scales: Tensor) -> Tensor:
        return (weights / torch.where(scales == 0, torch.inf, scales)).round_().clamp_(lowest, highest)

    for share in _CLIPPING:
        codes = rounded(share / highest * extreme)
        squares = (costs * codes * codes).sum(1, keepdim=True)
        scales = (costs * codes * weights).sum(1, keepdim=True) / torch.where(squares == 0, torch.inf, squares)
        error = (costs * (weights - scales * rounded(scales)).square_()).sum(1, keepdim=True)
        best = torch.where(error < least, scales, best)
        least = torch.minimum(error, least)
    return best[:, 0]
