"""What a kind of selector is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from handheld.models.llm import DecoderConfig
from handheld.models.llm.decoder import Layer
from handheld.runtime.flash import LayerSelector

from ..calibration import Observed


@dataclass(frozen=True)
class SelectorKind:
    """format_name: as the pack's spec has it. size: weights per scale, or the rank, for a model of this width.

    fit(layer, observed, size, share) gives a layer's selector, whose threshold selects `share` of the neurons on
    average over the calibration text.
    """

    format_name: str
    size: Callable[[DecoderConfig], int]
    fit: Callable[[Layer, Observed, int, float], LayerSelector]
