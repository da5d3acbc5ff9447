"""Turbo-VAED students (arXiv 2508.09136)."""

from .config import PRESETS, TurboVAEDConfig
from .decoder import TurboVAEDecoder

__all__ = ["PRESETS", "TurboVAEDConfig", "TurboVAEDecoder"]
