"""Turbo-VAED students (arXiv 2508.09136)."""

from .config import PRESETS, TurboVAEDConfig
from .decoder import FAMILY, TurboVAEDecoder

__all__ = ["FAMILY", "PRESETS", "TurboVAEDConfig", "TurboVAEDecoder"]
