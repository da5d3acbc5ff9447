"""What a text says of a model's neurons: how often each counts, and where thresholds belong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handheld.models.llm import Checkpoint, Decoder, dense
from handheld.models.llm.decoder import Layer


@dataclass(frozen=True)
class Observed:
    """One layer over a calibration text of M tokens.

    x: (M, d_model), its inputs. scores: (M, d_ff), abs(h) times the norm of the neuron's down column, which is how
    much the neuron changes the output. threshold: scores over it count as active. activate: the model's activation.
    """

    x: Tensor
    scores: Tensor
    importance: np.ndarray
    threshold: float
    activate: Callable[[Tensor], Tensor]

    @property
    def active(self) -> Tensor:
        """bool (M, d_ff)"""
        return self.scores > self.threshold

    @property
    def order(self) -> np.ndarray:
        """Ids of the neurons, the most often active first."""
        return np.argsort(-self.active.float().mean(0).numpy(), kind="stable")


class Calibration:
    """Walks a text through a model, layer by layer, beside the writer that packs the layers.

    tokens: (N, T) int64, N pieces of text. active: the share of neurons that is to count as active on average, by
    the threshold of each layer; None: those whose output is not zero, for models with a ReLU.
    """

    def __init__(self, checkpoint: Checkpoint, tokens: np.ndarray, active: float | None) -> None:
        self._decoder = Decoder(checkpoint)
        self._active = active
        self._hidden = self._decoder.embed(torch.from_numpy(np.asarray(tokens, np.int64)))

    def observe(self, layer: Layer) -> Observed:
        """The next layer; its output becomes the input of the one after it."""
        decoder = self._decoder
        hidden = decoder.attend(layer, self._hidden)
        x = decoder.feed_forward_input(layer, hidden)
        h = decoder.activations(layer, x)
        self._hidden = decoder.feed_forward(layer, hidden, h)
        importance = np.linalg.norm(dense(layer["down"]), axis=0).astype(np.float32)
        scores = h.flatten(0, 1).abs_().mul_(torch.from_numpy(importance))
        threshold = 0.0 if self._active is None else quantile(scores, 1 - self._active)
        return Observed(x.flatten(0, 1), scores, importance, threshold, decoder.activate)


def quantile(values: Tensor, share: float) -> float:
    """The value that `share` of all are not above."""
    flat = values.flatten()
    return float(flat.kthvalue(max(1, min(len(flat), round(share * len(flat))))).values)
