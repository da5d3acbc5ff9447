"""Gate and up rows at two bits: the layer's own arithmetic, coarsely."""

from __future__ import annotations

import torch

from ....models.llm import DecoderConfig, dense
from ....models.llm.decoder import Layer
from ....runtime.flash import LayerSelector
from ....runtime.flash.quantise import decode_ternary, encode_ternary
from ..calibration import Observed, quantile
from .base import SelectorKind


def _size(config: DecoderConfig) -> int:
    return max(size for size in (32, 64) if config.d_model % size == 0)


def _fit(layer: Layer, observed: Observed, size: int, share: float) -> LayerSelector:
    def product(name: str) -> torch.Tensor:
        weight = dense(layer[name])
        return observed.x @ torch.from_numpy(decode_ternary(encode_ternary(weight, size), weight.shape[1], size)).T

    bias = dense(layer["up_bias"]) if "up_bias" in layer else None
    up = product("up") if bias is None else product("up") + torch.from_numpy(bias)
    scores = observed.activate(product("gate")) * up if "gate" in layer else observed.activate(up)
    scores = scores.abs_() * torch.from_numpy(observed.importance)
    return LayerSelector(threshold=quantile(scores, 1 - share), bias=bias)


SELECTOR = SelectorKind("ternary", _size, _fit)
