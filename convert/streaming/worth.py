"""How dear weights are where a segment's convolutions are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..choice.choose import with_weight_price
from ..target import Precision
from .cuts import work_of
from .units import units_of, weights_of


class WeightWorth:
    """Makes a choice in a segment, or in a unit, the one that the whole decoder's shares of time and weights give.

    A choice weighs time against weights, each as a part of its own graph's.
    """

    def __init__(self, model: nn.Module) -> None:
        units = units_of(model)
        self._work = dict(zip(units, work_of(model)))
        self._weights = {name: weights_of(unit) for name, unit in units.items()}

    def in_segment(self, precision: Precision, units: Sequence[str]) -> Precision:
        """A precision as it applies to a segment of these units."""
        work = sum(self._work[name] for name in units) / sum(self._work.values())
        share = sum(self._weights[name] for name in units) / sum(self._weights.values()) / work
        return replace(precision, rewrites=with_weight_price(precision.rewrites, share))
