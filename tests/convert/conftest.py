"""Fixtures of the tests of lowering."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from handheld.convert.target import Target
from handheld.models import PRESETS, TurboVAEDecoder


def small_decoder() -> TurboVAEDecoder:
    """The tiny preset with one layer a block: every kind of layer in half of the nodes, which take the time."""
    torch.manual_seed(0)
    return TurboVAEDecoder(replace(PRESETS["tiny"], decoder_layers_per_block=(1, 1, 1))).eval()


@pytest.fixture
def skip_where_8_bit_sums_saturate() -> Callable[[Target], None]:
    """Skips a test of 8-bit accuracy where sums are of 16 bits: onnxruntime on x86 without VNNI."""

    def skip(target: Target) -> None:
        cpu = Path("/proc/cpuinfo")
        x86 = platform.machine() in ("x86_64", "AMD64")
        if target.runtime == "onnxruntime" and x86 and not (cpu.exists() and "vnni" in cpu.read_text()):
            pytest.skip("needs VNNI: onnxruntime's 8-bit kernels saturate on this CPU, 33 dB where torch has 51")

    return skip
