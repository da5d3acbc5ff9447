"""Families of decoders. A new one is one file or folder, and one line here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..decoder import Decoder
from . import loading
from .autoencoder_kl import FAMILY as AUTOENCODER_KL
from .autoencoder_tiny import FAMILY as AUTOENCODER_TINY
from .base import Config, Family, FamilyTable
from .flash_vaed_ltx import FAMILY as FLASH_VAED_LTX
from .flash_vaed_wan import FAMILY as FLASH_VAED_WAN
from .taehv import FAMILY as TAEHV
from .turbo_vaed import FAMILY as TURBO_VAED
from .turbo_vaed_wan import FAMILY as TURBO_VAED_WAN

__all__ = ["FAMILIES", "Config", "Family", "FamilyTable", "from_preset", "load_decoder"]

FAMILIES = FamilyTable(
    TURBO_VAED, TURBO_VAED_WAN, FLASH_VAED_LTX, FLASH_VAED_WAN, TAEHV, AUTOENCODER_KL, AUTOENCODER_TINY
)


def from_preset(name: str, *, causal: bool = False) -> Decoder:
    """A decoder with random weights of a named architecture, in eval mode.

    Args:
        name: a preset of any family in `FAMILIES`.
        causal: its form in which no frame depends on a later latent frame.

    Raises ModelError for an unknown name, and where there is no causal form.
    """
    family, config = loading.preset_config(FAMILIES, name, causal=causal)
    return family.decoder(config).eval()


def load_decoder(
    source: str | Path,
    *,
    config: Config | str | Path | None = None,
    subfolder: str | None = None,
    torch_dtype: torch.dtype | None = None,
    local_files_only: bool = False,
) -> Decoder:
    """Load a decoder of any family from a folder, a checkpoint file or a hub id: see `loading.load_decoder`."""
    options: dict[str, Any] = dict(subfolder=subfolder, torch_dtype=torch_dtype, local_files_only=local_files_only)
    return loading.load_decoder(FAMILIES, source, config=config, **options)
