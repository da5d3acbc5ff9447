"""The teacher inside this package: a small VAE of the LTX family that the project trained on real video."""

from __future__ import annotations

from pathlib import Path

from ..latents import LatentSpec
from .base import STANDARD_TAPS, TeacherInfo
from .ltx import LTXDecoder

TEACHER = TeacherInfo(
    name="embedded",
    diffusers_class="AutoencoderKLLTXVideo",
    default_source=Path(__file__).parent / "embedded_weights",
    licence="Apache-2.0, as handheld; the model card beside the weights lists the clips it was trained on",
    licence_url=None,
    spec=LatentSpec(channels=48, spatial=8, temporal=2),
    scaling="none",
    decoder=LTXDecoder,
    taps=STANDARD_TAPS,
)
