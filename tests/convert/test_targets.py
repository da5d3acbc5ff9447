"""Every target on real decoders: what is lowered, what is delegated, what the artefact computes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from handheld.convert import TARGETS, ExportError, export, resolve_targets
from handheld.convert.rewrite import apply, capture, is_call, max_rank, shape_of
from handheld.models import PRESETS, TurboVAEDecoder
from handheld.runtime.bundle import Bundle
from handheld.runtime.errors import BundleError
from handheld.runtime.session import open_session


def decoder(preset: str, *, causal: bool = False, frames: int, size: int) -> tuple[TurboVAEDecoder, torch.Tensor]:
    torch.manual_seed(0)
    model = TurboVAEDecoder.from_preset(preset, causal=causal)
    return model, torch.randn(model.spec.latent_shape(frames=frames, height=size, width=size))


def lower(model: nn.Module, latents: torch.Tensor, out: Path, target: str, precision: str = "fp32") -> Bundle:
    return export(
        model,
        latents,
        out,
        targets=resolve_targets([target], precision),
        precision=precision,
        name="test",
        provenance={},
    )


def difference(bundle: Bundle) -> float:
    inputs, outputs = bundle.golden()
    (artifact,) = bundle.artifacts
    session = open_session(bundle, artifact)
    try:
        return float(np.abs(session.run(inputs)["frames"] - outputs["frames"]).max())
    finally:
        session.close()


@pytest.fixture(scope="module")
def tiny_bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Bundle]:
    """Bundles of the tiny preset, each lowered once for the whole module."""

    @functools.cache
    def bundle(target: str, precision: str) -> Bundle:
        model, latents = decoder("tiny", frames=5, size=16)
        return lower(model, latents, tmp_path_factory.mktemp(target) / "bundle", target, precision)

    return bundle


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["android", "onnx"])
def test_artefact_computes_what_the_decoder_does(target: str, precision: str, tiny_bundles) -> None:
    bundle = tiny_bundles(target, precision)
    assert bundle.artifacts[0].tolerance.fault(difference(bundle), math.inf) == ""
    assert bundle.artifacts[0].precision == precision


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pte_is_one_delegate_with_nothing_outside(precision: str, tiny_bundles) -> None:
    (artifact,) = tiny_bundles("android", precision).artifacts
    assert artifact.delegation["delegates"] == 1
    assert artifact.delegation["ops_outside"] == {}


def test_full_width_ltx_is_wholly_delegated_and_right(tmp_path: Path) -> None:
    model, latents = decoder("ltx", frames=9, size=64)
    bundle = lower(model, latents, tmp_path / "bundle", "android")
    assert bundle.artifacts[0].delegation["ops_outside"] == {}
    assert difference(bundle) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("preset", [*PRESETS])
@pytest.mark.parametrize("target", ["android", "onnx"])
def test_every_preset_lowers_and_agrees(target: str, preset: str, causal: bool, tmp_path: Path) -> None:
    spec = PRESETS[preset].spec
    model, latents = decoder(preset, causal=causal, frames=spec.frames(2), size=2 * spec.spatial)
    bundle = lower(model, latents, tmp_path / "bundle", target)
    assert difference(bundle) < 1e-3
    if target == "android":
        assert bundle.artifacts[0].delegation["ops_outside"] == {}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("preset", [*PRESETS])
def test_rewritten_graphs_hold_no_3d_convolution_and_no_rank_6(preset: str, causal: bool) -> None:
    spec = PRESETS[preset].spec
    model, latents = decoder(preset, causal=causal, frames=spec.frames(2), size=spec.spatial)
    for target in TARGETS.values():
        graph = capture(model, (latents,))
        report = apply(graph, target.precisions["fp32"].rewrites)
        assert not any(entry.refused for entry in report)
        assert not any(is_call(node, torch.ops.aten.conv3d.default) for node in graph.graph.nodes)
        assert max_rank(graph) == 5
        convolutions = [n for n in graph.graph.nodes if is_call(n, torch.ops.aten.conv2d.default)]
        assert all(len(shape_of(n)) == 4 for n in convolutions)
        with torch.no_grad():
            assert (graph(latents) - model(latents)).abs().max() < 1e-4


def test_core_ml_program_has_the_stated_inputs_and_no_op_over_rank_5(tiny_bundles) -> None:
    import coremltools as ct

    bundle = tiny_bundles("ios", "fp16")
    package = ct.models.MLModel(str(bundle.path / bundle.artifacts[0].path), skip_model_load=True)
    spec = package.get_spec()
    (given,), (yielded,) = spec.description.input, spec.description.output
    assert (given.name, tuple(given.type.multiArrayType.shape)) == ("latents", (1, 48, 3, 2, 2))
    assert (yielded.name, tuple(yielded.type.multiArrayType.shape)) == ("frames", (1, 3, 5, 16, 16))
    (function,) = spec.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    assert {op.type for op in block.operations} >= {"conv", "pixel_shuffle"}
    ranks = [len(o.type.tensorType.dimensions) for op in block.operations for o in op.outputs]
    assert max(ranks) <= 5


def test_export_leaves_the_model_and_its_dtype_alone(tmp_path: Path) -> None:
    model, latents = decoder("tiny", frames=3, size=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lower(model, latents, tmp_path / "bundle", "onnx", "fp16")
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_manifest_records_what_the_rewrites_did(tiny_bundles) -> None:
    (artifact,) = tiny_bundles("onnx", "fp32").artifacts
    applied = {record.name: record.applied for record in artifact.rewrites}
    convolutions = sum(isinstance(m, nn.Conv3d) for m in TurboVAEDecoder.from_preset("tiny").modules())
    selections = [selection for record in artifact.rewrites for selection in record.selected]
    assert len({selection.node for selection in selections}) == len(selections) == convolutions
    assert all(len(record.selected) in (0, record.applied) for record in artifact.rewrites)
    assert "onnxruntime 1.32.0" in artifact.settings["costs"]
    assert applied["interleave_frames"] == 1
    assert artifact.settings["captured"]["max_rank"] == 6
    assert artifact.settings["rewritten"]["max_rank"] == 5


@pytest.mark.parametrize(
    ("names", "precision", "message"),
    [
        ([], "fp32", "No target given; there are: ios, android, onnx"),
        (["windows"], "fp32", "no target 'windows'; there are: ios, android, onnx"),
        (["onnx"], "int3", "no precision 'int3'; it has fp32, fp16"),
    ],
)
def test_targets_that_do_not_exist_are_refused(names: list[str], precision: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        resolve_targets(names, precision)


def test_a_missing_runtime_package_is_named_with_the_extra_that_brings_it(monkeypatch) -> None:
    monkeypatch.setattr("handheld.convert.target.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"target android needs executorch: pip install 'handheld\[android\]'"):
        resolve_targets(["android"], "fp32")


class _Unlowerable(nn.Module):
    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3] if latents.sum() > 0 else latents[:, 3:6]


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"torch\.export does not take _Unlowerable"):
        lower(_Unlowerable(), torch.ones(1, 6, 1, 2, 2), tmp_path / "bundle", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_latents_that_are_no_single_fp32_clip_are_refused(tmp_path: Path) -> None:
    model, latents = decoder("tiny", frames=3, size=16)
    for wrong in (latents.half(), latents.expand(2, -1, -1, -1, -1), latents[0]):
        with pytest.raises(ExportError, match="one clip"):
            lower(model, wrong, tmp_path / "bundle", "onnx")


def test_an_existing_bundle_is_not_replaced_unasked(tmp_path: Path) -> None:
    model, latents = decoder("tiny", frames=3, size=16)
    lower(model, latents, tmp_path / "bundle", "onnx")
    with pytest.raises(BundleError):
        lower(model, latents, tmp_path / "bundle", "onnx")
