"""Every family's decoder, small, through every target: whole delegates, and verified where this machine can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from handheld.convert import export, resolve_targets
from handheld.convert.coreml.evaluator import with_reference
from handheld.models import FAMILIES
from handheld.models.families.loading import preset_config
from handheld.runtime.verify import verify

pytest.importorskip("executorch")
pytest.importorskip("coremltools")
pytest.importorskip("onnxruntime")


def _preset(name: str, **change: Any) -> Any:
    return replace(preset_config(FAMILIES, name)[1], **change)


# As few layers as show each kind: with doubling in time and space, with space alone, without.
SMALL = {
    "taehv": _preset("taew2_2", channels=(8, 8, 4, 4), layers=1, decoder_time_upscale=(False, False, True)),
    "taehv-super": _preset("taew2_2_super", channels=(8, 4, 4, 4), layers=1),
    "wan22": _preset(
        "wan22",
        decoder_block_out_channels=(4, 8, 8),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(False, True, True),
        decoder_spatio_only=(False, True, False),
        decoder_is_dw_conv=(False, False, False, True),
    ),
    "flash-ltx": _preset(
        "flash-ltx",
        decoder_block_out_channels=(4, 8, 8),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_operators=("frame", "dense", "depthwise", "depthwise"),
        decoder_force_shortcut=(True, False, False),
        decoder_spatio_temporal_scaling=(True, False, False),
    ),
    "flash-wan": _preset(
        "flash-wan",
        stage_channels=(8, 8, 4),
        upsampled_channels=(8, 4),
        temporal_upsample=(True, False),
        framewise=(False, False, True),
        layers=1,
    ),
}

# Of ExecuTorch's GPU delegate there is no runtime in its Python package.
NOT_HERE = {"android-vulkan"}


def _exported_and_verified(config: Any, targets: tuple[str, ...], folder: Path) -> None:
    torch.manual_seed(0)
    family = next(family for family in FAMILIES.values() if isinstance(config, family.config))
    decoder = family.decoder(config).eval()
    latents = torch.randn(1, decoder.spec.channels, 3, 2, 3)
    bundle = export(
        decoder, latents, folder / "bundle", targets=resolve_targets(targets), name=family.name, provenance={}
    )
    for artifact in bundle.manifest.artifacts:
        if artifact.delegation is not None:
            assert artifact.delegation["delegates"] == 1, artifact.name
            assert not artifact.delegation["ops_outside"], artifact.name
    verdicts = {verdict.artifact.name: verdict for verdict in with_reference(bundle, verify(bundle))}
    assert {n: (v.status, v.reason) for n, v in verdicts.items() if n not in NOT_HERE} == {
        n: ("pass", "") for n in targets if n not in NOT_HERE
    }


@pytest.mark.parametrize("name", SMALL)
def test_family_is_exported_in_one_delegate_and_verified(name: str, tmp_path: Path) -> None:
    _exported_and_verified(SMALL[name], ("onnx", "android", "ios"), tmp_path)


# Lowering to Vulkan takes most of the time, a minute for a family on a busy machine.
@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_family_is_exported_for_gpus_in_one_delegate(name: str, tmp_path: Path) -> None:
    _exported_and_verified(SMALL[name], ("android-vulkan", "ios-executorch"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_family_is_exported_and_executed_by_core_ai(name: str, tmp_path: Path) -> None:
    pytest.importorskip("coreai_torch", reason="needs coreai-torch")
    _exported_and_verified(SMALL[name], ("ios27",), tmp_path)
