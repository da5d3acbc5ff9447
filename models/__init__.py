"""Students, teachers and the latent spaces that they share. Imports nothing else of ours."""

from .errors import ModelError
from .families.turbo_vaed import PRESETS, TurboVAEDConfig, TurboVAEDecoder
from .latents import LatentSpec

__all__ = ["PRESETS", "LatentSpec", "ModelError", "TurboVAEDConfig", "TurboVAEDecoder"]
