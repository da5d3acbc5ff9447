"""A product of two small matrices, fitted in closed form.

The paper trains its predictor by gradient descent; here it is the best linear prediction of which neurons are
active (ridge regression on the 0 and 1 of the calibration text), cut to its leading rank: reduced-rank regression.
"""

from __future__ import annotations

import torch

from handheld.models.llm import DecoderConfig
from handheld.models.llm.decoder import Layer
from handheld.runtime.flash import LayerSelector

from ..calibration import Observed, quantile
from .base import SelectorKind

_RIDGE = 1e-2  # of the mean variance of the inputs


def _size(config: DecoderConfig) -> int:
    """An eighth of the width, in multiples of 32: rank 128 for widths near 1000."""
    return max(32, config.d_model // 8 // 32 * 32)


def _fit(layer: Layer, observed: Observed, size: int, share: float) -> LayerSelector:
    x, wanted = observed.x.double(), observed.active.double()
    mean_x, mean_wanted = x.mean(0), wanted.mean(0)
    centred = x - mean_x
    gram = centred.T @ centred
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    root = torch.linalg.cholesky(gram)
    # With gram = root root^T, the prediction's leading directions are those of root^-1 x^T wanted.
    projected = torch.linalg.solve_triangular(root, centred.T @ (wanted - mean_wanted), upper=False)
    directions = torch.linalg.eigh(projected @ projected.T).eigenvectors[:, -size:]
    a = torch.linalg.solve_triangular(root.T, directions, upper=True).T
    b = projected.T @ directions
    lengths = a.norm(dim=1, keepdim=True)
    a, b = (a / lengths).half(), (b * lengths.T).half()
    bias = mean_wanted - b.double() @ (a.double() @ mean_x)
    scores = observed.x @ a.float().T @ b.float().T + bias.float()
    return LayerSelector(threshold=quantile(scores, 1 - share), a=a.numpy(), b=b.numpy(), bias=bias.float().numpy())


SELECTOR = SelectorKind("low_rank", _size, _fit)
