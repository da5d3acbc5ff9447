"""Turbo-VAED for latents of Wan 2.2 (GAIR-NLP/daVinci-MagiHuman)."""

from .config import PRESETS, TurboVAEDWanConfig
from .decoder import FAMILY, TurboVAEDWanDecoder

__all__ = ["FAMILY", "PRESETS", "TurboVAEDWanConfig", "TurboVAEDWanDecoder"]
