"""The price of weights in the choice of a segment's convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..choice.choose import with_weight_price
from ..target import Precision
from .cuts import unit_work
from .units import units_of, weights_of


class WeightPrice:
    """Corrects the price of weights for a graph that is a part of a decoder.

    A choice weighs an option's share of the time against its share of the weights, both within the graph that it
    sees. A segment's share of the decoder's weights differs from its share of the time, so that its choices would
    not be those of the whole decoder. The price is multiplied by the ratio of the two shares.
    """

    def __init__(self, model: nn.Module) -> None:
        units = units_of(model)
        self._work = dict(zip(units, unit_work(model)))
        self._weights = {name: weights_of(unit) for name, unit in units.items()}

    def in_segment(self, precision: Precision, units: Sequence[str]) -> Precision:
        """A precision as it applies to a segment of these units."""
        work = sum(self._work[name] for name in units) / sum(self._work.values())
        if not work:  # nothing is multiplied, as in a clamp: there is nothing to choose
            return precision
        share = sum(self._weights[name] for name in units) / sum(self._weights.values()) / work
        return replace(precision, rewrites=with_weight_price(precision.rewrites, share))
