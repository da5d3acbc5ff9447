"""Segments of every family's layers: the frames of the whole clip, in fp64 and, exported, on onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handheld.convert import export, resolve_targets
from handheld.convert.streaming import Cut, PassCut, SegmentModule, build, default_cuts
from handheld.models.families import FAMILIES
from handheld.runtime.manifest import Artifact, Method, TensorSpec, Tolerance
from handheld.runtime.session import open_session
from handheld.runtime.streaming import StreamSession
from handheld.runtime.verify import verify

# Small forms of presets.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "taehv": ("taew2_2", dict(channels=(16, 16, 8, 8), layers=1)),
    "taehv-super": ("taew2_2_super", dict(channels=(16, 8, 8, 8), layers=2)),
    "wan22": ("wan22", dict(decoder_block_out_channels=(16,) * 4, decoder_layers_per_block=(1,) * 5)),
    "flash-ltx": ("flash-ltx", dict(decoder_block_out_channels=(8, 8, 16, 16), decoder_layers_per_block=(1,) * 5)),
    "flash-wan": ("flash-wan", dict(stage_channels=(16, 16, 8, 4), upsampled_channels=(8, 8, 4), layers=1)),
}


def small(name: str) -> Any:
    preset, change = SMALL[name]
    family = FAMILIES.presets[preset]
    torch.manual_seed(0)
    return family.decoder(replace(family.presets[preset], **change)).eval()


def latents_for(model: Any, frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(1, model.spec.channels, frames, 3, 2, generator=generator)


class TorchProgram:
    threads = None

    def __init__(self, module: SegmentModule) -> None:
        self.module = module

    def call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [result.numpy() for result in self.module(*map(torch.from_numpy, inputs))]

    def close(self) -> None: ...


def decode(model: Any, cuts: tuple[PassCut, ...], latents: torch.Tensor) -> np.ndarray:
    *_, height, width = latents.shape
    plan, modules = build(model, cuts, height, width)
    programs = {module.plan.program: TorchProgram(module) for module in modules}
    given, scale = (1, model.spec.channels, 1, height, width), model.spec.spatial
    made = (1, 3, 1, scale * height, scale * width)
    assert plan.faults((given[1], height, width), (3, *made[3:])) == []
    artifact = Artifact(
        *("torch", "torch", "torch", "stream", "fp64", "0" * 64, 0, Tolerance(1e-10, "fp64")),
        methods=(Method("forward", (given,), (made,)),),
        input_dtype="float64",
        stream=plan,
    )
    specs = [TensorSpec("latents", given)], [TensorSpec("frames", made)]
    with StreamSession(plan, lambda segment: programs[segment.program], artifact, *specs) as session:
        return session.run({"latents": latents.numpy()})["frames"]


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_segments_give_the_frames_of_the_whole_clip(name: str) -> None:
    model = small(name).double()
    units = len(model.layers())
    for frames in (1, 4):
        latents = latents_for(model, frames).double()
        whole = model.decode(latents).numpy()
        stripped = PassCut((Cut(2, 3),)), PassCut((Cut(units - 2, 2),), strips=2)
        for cuts in (default_cuts(model, 4), stripped):
            made = decode(model, cuts, latents)
            assert made.shape == whole.shape
            assert np.abs(made - whole).max() < 1e-10  # what fp64 rounds


@torch.no_grad()
@pytest.mark.parametrize("name", ["taehv", "flash-wan"])
def test_exported_segments_run_on_onnxruntime(name: str, tmp_path: Path) -> None:
    model = small(name)
    bundle = export(
        model,
        latents_for(model, 2),
        tmp_path / "bundle",
        targets=resolve_targets(["onnx"]),
        more=[latents_for(model, 1)],
        stream=default_cuts(model, 2),
        name=name,
        provenance={},
    )
    (verdict,) = verify(bundle)
    assert (verdict.status, verdict.reason) == ("pass", "")
    clip = latents_for(model, 5)
    with open_session(bundle, "onnx") as session:
        frames = session.run({"latents": clip.numpy()})["frames"]
    # The runtime adds in another order (docs/streaming.md).
    np.testing.assert_allclose(frames, model.decode(clip).numpy(), rtol=0, atol=1e-4)
