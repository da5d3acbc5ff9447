"""The op at which an artefact leaves its model is named, with its module, in each runtime that runs here."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from handheld.convert import TARGETS, export
from handheld.convert.diagnose import first_divergence
from handheld.convert.target import Job, Lowered, Target
from handheld.runtime.bundle import Bundle


class _Decoder(nn.Module):
    """Latents (1, 4, T, H, W) to frames (1, 3, T, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(4, 8, (1, 3, 3), padding=(0, 1, 1))
        self.middle = nn.Sequential(nn.SiLU(), nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1)), nn.SiLU())
        self.last = nn.Conv3d(8, 3, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x)))


def _spoilt(target: Target) -> Target:
    """A target that lowers the middle convolution with other weights than the graph has."""

    def lower(job: Job) -> Lowered:
        graph = copy.deepcopy(job.graph)
        with torch.no_grad():
            for tensor in [*graph.parameters(), *graph.buffers()]:
                if tuple(tensor.shape) == (8, 8, 3, 3):
                    tensor.mul_(1.5)
        return target.lower(replace(job, graph=graph))

    return replace(target, lower=lower)


def _bundle(folder: Path, target: Target, model: nn.Module) -> Bundle:
    latents = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return export(model, latents, folder / "b", targets=[target], precision="fp32", name="t", provenance={})


@pytest.mark.parametrize("name", ["onnx", "android"])
def test_the_first_op_that_diverges_is_named_with_its_module(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    if missing := target.missing():
        pytest.skip(f"needs {', '.join(missing)}")
    torch.manual_seed(0)
    model, wrong = _Decoder().eval(), _spoilt(target)
    bundle = _bundle(tmp_path, wrong, model)
    text = first_divergence(bundle, bundle.artifacts[0], wrong, model)
    assert "The first op that diverges from the model is conv2d" in text
    assert "of middle.1," in text


def test_where_no_op_diverges_that_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _Decoder().eval()
    bundle = _bundle(tmp_path, TARGETS["onnx"], model)
    assert "No op diverges by itself" in first_divergence(bundle, bundle.artifacts[0], TARGETS["onnx"], model)


def test_a_source_that_has_changed_since_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _Decoder().eval()
    bundle = _bundle(tmp_path, TARGETS["onnx"], model)
    with torch.no_grad():
        model.first.weight.mul_(2)
    assert "Its source has changed" in first_divergence(bundle, bundle.artifacts[0], TARGETS["onnx"], model)
