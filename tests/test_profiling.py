"""`handheld.profile`: what of a bundle is measured here, and what is said of the rest."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import handheld
from handheld.profiling import unmeasured
from handheld.runtime.errors import RuntimeMissing

GOOD = Path(__file__).resolve().parent / "fixtures" / "bundles" / "good"


def test_every_artefact_that_runs_here_is_measured(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.Upsample(scale_factor=2))
    bundle = handheld.export(model.eval(), tmp_path / "bundle", example=torch.randn(1, 4, 8, 8), targets=["onnx"])
    said: list[str] = []
    steps: list[tuple[int, int]] = []
    result = handheld.profile(
        bundle.path,
        repeat=2,
        rounds=1,
        warmup=0,
        progress=said.append,
        on_progress=lambda done, total, what: steps.append((done, total)),
    )
    (student,) = result.subjects
    assert (student.label, student.role, student.error) == ("student, onnx", "student", None)
    assert student.units_per_run == 1
    assert [len(measured.latency_ns) for measured in student.rounds] == [2]
    assert said == []  # the manifest names no teacher
    assert steps[-1] == (3, 3)


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs on macOS")
def test_a_bundle_of_which_nothing_runs_here_is_refused_with_each_reason() -> None:
    good = handheld.read_bundle(GOOD)
    ios = replace(good, manifest=replace(good.manifest, artifacts=(good.artifact("ios"),)))
    assert list(unmeasured(good)) == ["ios"]
    with pytest.raises(RuntimeMissing, match=r"ios: .*macOS"):
        handheld.profile(ios)
