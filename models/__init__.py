"""Students, teachers and the latent spaces that they share. Imports nothing else of ours."""

from .decoder import Decoder
from .errors import ModelError
from .families import FAMILIES, Family, from_preset, load_decoder
from .families.turbo_vaed import PRESETS, TurboVAEDConfig, TurboVAEDecoder
from .latents import LatentSpec
from .statistics import LatentStatistics

__all__ = [
    "FAMILIES",
    "PRESETS",
    "Decoder",
    "Family",
    "LatentSpec",
    "LatentStatistics",
    "ModelError",
    "TurboVAEDConfig",
    "TurboVAEDecoder",
    "from_preset",
    "load_decoder",
]
