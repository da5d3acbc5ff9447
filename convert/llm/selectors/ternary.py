"""Gate and up rows at two bits: the layer's own arithmetic, coarsely.

The rows are rounded for the inputs of the calibration text. What their products still miss is known from the same
text, as a variance per row, and joins the score: the root of the energy that a neuron is expected to have, not of
what the coarse rows give alone. A neuron whose estimate is near zero but unsure may count.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from handheld.models.llm import DecoderConfig, dense
from handheld.models.llm.decoder import Layer
from handheld.runtime.flash import LayerSelector
from handheld.runtime.flash.quantise import decode_ternary, join_ternary

from ..calibration import Observed, quantile
from ..rounding import round_rows
from .base import SelectorKind

_LOWEST, _HIGHEST = -1, 2  # what two bits hold in the engine's code


def _size(config: DecoderConfig) -> int:
    return max(size for size in (32, 64) if config.d_model % size == 0)


def _fit(layer: Layer, observed: Observed, size: int, share: float) -> LayerSelector:
    x = observed.x
    moments = x.T @ x / len(x)
    bias = dense(layer["up_bias"]) if "up_bias" in layer else None
    rows, noise = [], []
    energy: Tensor | float = 1.0
    for name in ("gate", "up") if "gate" in layer else ("up",):
        weights = dense(layer[name])
        rows.append(join_ternary(*round_rows(weights, moments, size, _LOWEST, _HIGHEST)))
        coarse = x @ torch.from_numpy(decode_ternary(rows[-1], weights.shape[1], size)).T
        exact = x @ torch.from_numpy(weights).T
        if name == "up" and bias is not None:
            coarse, exact = coarse + torch.from_numpy(bias), exact + torch.from_numpy(bias)
        if name == "gate" or len(rows) == 1:
            coarse, exact = observed.activate(coarse), observed.activate(exact)
        noise.append((exact - coarse).square_().mean(0))
        energy = energy * (coarse.square_() + noise[-1])
    assert isinstance(energy, Tensor)
    scores = energy.sqrt_() * torch.from_numpy(observed.importance)
    return LayerSelector(
        threshold=quantile(scores, 1 - share),
        bias=bias,
        rows=np.concatenate(rows, axis=1),
        noise=torch.stack(noise, dim=1).numpy(),
    )


SELECTOR = SelectorKind("ternary", _size, _fit)
