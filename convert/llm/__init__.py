"""Checkpoints of language models to packs of the flash engine."""

from .calibration import Calibration
from .pack import PackOptions, pack_model
from .selectors import SELECTORS

__all__ = ["SELECTORS", "Calibration", "PackOptions", "pack_model"]
