"""TAEHV, tiny decoders for latents of several video models (madebyollin/taehv)."""

from .config import PRESETS, TAEHVConfig
from .decoder import FAMILY, TAEHVDecoder

__all__ = ["FAMILY", "PRESETS", "TAEHVConfig", "TAEHVDecoder"]
