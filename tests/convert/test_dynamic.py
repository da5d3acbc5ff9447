"""Graphs with symbolic sizes: one ONNX artefact for any number of frames, height and width."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import handheld
from handheld.convert import ExportError
from handheld.convert.dynamic import capture_dynamic, other_sizes
from handheld.decoding import decode
from handheld.runtime.bundle import Bundle, read_bundle
from handheld.runtime.errors import BundleError, RuntimeFailure
from handheld.runtime.session import open_session
from handheld.runtime.verify import verify

from .conftest import small_decoder


@functools.cache
def small() -> nn.Module:
    return small_decoder()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A dynamic bundle in one precision, each exported once for the whole module."""

    @functools.cache
    def make(precision: str) -> Bundle:
        return handheld.export(
            *(small(), tmp_path_factory.mktemp(precision) / "bundle"),
            targets=["onnx"],
            precision=precision,
            frames=3,
            height=32,
            width=24,
            dynamic=True,
        )

    return make


def test_one_graph_computes_sizes_that_it_was_not_captured_or_verified_with(bundles: Callable) -> None:
    bundle = bundles("fp32")
    assert [file.name for file in (bundle.path / "onnx" / "decoder").glob("*.onnx")] == ["model.onnx"]
    with open_session(bundle, "onnx") as session:
        for t, h, w in ((2, 4, 3), (3, 2, 7), (5, 6, 2)):
            latents = torch.randn(1, 48, t, h, w)
            frames = session.run({"latents": latents.numpy()})["frames"]
            with torch.no_grad():
                np.testing.assert_allclose(frames, small()(latents).numpy(), atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_is_verified_on_three_sizes(precision: str, bundles: Callable) -> None:
    bundle = bundles(precision)
    (verdict,) = verify(bundle)
    assert (verdict.status, verdict.reason) == ("pass", "")
    artifact = read_bundle(bundle.path).artifacts[0]
    assert artifact.dynamic == ("T", "H", "W")
    assert len({method.inputs for method in artifact.methods}) == 3
    assert artifact.rewrites == ()
    assert "symbols" in artifact.settings["as_captured"]


def test_wrong_channels_and_sizes_below_two_are_refused_with_what_is_taken(bundles: Callable) -> None:
    with open_session(bundles("fp32"), "onnx") as session:
        for shape in ((1, 47, 2, 4, 3), (1, 48, 2, 1, 3), (2, 48, 2, 4, 3)):
            with pytest.raises(RuntimeFailure, match="or others along T, H, W, from 2 on"):
                session.run({"latents": np.zeros(shape, np.float32)})


def test_latents_of_another_size_are_decoded(bundles: Callable, tmp_path: Path) -> None:
    save_file({"latents": torch.randn(1, 48, 3, 2, 5)}, tmp_path / "latents.safetensors")
    done = decode(bundles("fp32"), tmp_path / "latents.safetensors", tmp_path / "out.mp4")
    assert (done.frames, done.size) == (5, (16, 40))


def test_an_axis_that_the_model_fixes_stays_fixed(tmp_path: Path) -> None:
    class Rows(nn.Module):
        """Adds a value per row: the height is the weight's."""

        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(1, 1, 6, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.rows)[:, :3]

    latents = torch.randn(1, 4, 6, 5)
    bundle = handheld.export(Rows(), tmp_path / "bundle", example=latents, targets=["onnx"], dynamic=True)
    assert bundle.artifacts[0].dynamic == ("W",)
    assert bundle.artifacts[0].takes(bundle.manifest.inputs[0], (1, 4, 6, 9))
    assert not bundle.artifacts[0].takes(bundle.manifest.inputs[0], (1, 4, 7, 5))
    with pytest.raises(ExportError, match="No size of Rows can vary"):
        capture_dynamic(Rows(), latents[..., :1])


def test_other_sizes_differ_along_the_axes_alone() -> None:
    latents = torch.randn(1, 4, 2, 6, 8)
    assert [tuple(x.shape) for x in other_sizes(latents, (2, 3, 4))] == [(1, 4, 4, 3, 5), (1, 4, 2, 5, 8)]
    assert [tuple(x.shape) for x in other_sizes(latents, (4,))] == [(1, 4, 2, 6, 5)]
    assert other_sizes(torch.randn(1, 4, 2, 2), (2, 3)) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": ["onnx", "android"]}, "Target android has fixed sizes; dynamic ones are for onnx"),
        ({"targets": ["ios18"]}, "Give each size with --shape: ios18"),
        ({"targets": ["onnx"], "pixels": "rgba8"}, "do not go with an artefact that gives pixels"),
        ({"targets": ["onnx"], "stream": True}, "do not go with a streamed artefact"),
        ({"targets": ["onnx"], "precision": "int8"}, "do not go with int8"),
        ({"targets": ["onnx"], "precision": "auto"}, "name a precision for dynamic sizes"),
    ],
)
def test_what_does_not_go_with_dynamic_sizes_is_refused(options: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=says):
        handheld.export(small(), tmp_path / "b", frames=3, height=32, width=32, dynamic=True, **options)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("axes", [["C"], ["T", "T"], [], "T"])
def test_manifests_with_other_axes_are_refused(axes: object, bundles: Callable, tmp_path: Path) -> None:
    tree = json.loads((bundles("fp32").path / "manifest.json").read_text())
    tree["artifacts"][0]["dynamic"] = axes
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(BundleError, match=r"artifacts\[0\]\.dynamic"):
        read_bundle(tmp_path)
