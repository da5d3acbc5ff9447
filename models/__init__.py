"""Students, teachers and the latent spaces that they share. Imports nothing else of ours."""

from .errors import ModelError
from .latents import LatentSpec
from .turbo_vaed import PRESETS, TurboVAEDConfig, TurboVAEDecoder

__all__ = ["PRESETS", "LatentSpec", "ModelError", "TurboVAEDConfig", "TurboVAEDecoder"]
