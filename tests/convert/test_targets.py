"""Every target on real decoders: what is lowered, what is delegated, what the artefact computes."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from handheld.convert import TARGETS, ExportError, export, resolve_targets
from handheld.convert.coreml.evaluator import REFERENCE_RUNTIMES, UnsupportedProgram, verify_coreml
from handheld.convert.coreml.evaluator.delegate import extract_package
from handheld.convert.executorch import program as pte
from handheld.convert.graph.capture import capture
from handheld.convert.graph.nodes import is_call, shape_of
from handheld.convert.graph.rewrite import apply, max_rank
from handheld.convert.quiet import quiet
from handheld.models import PRESETS, TurboVAEDecoder
from handheld.runtime.bundle import Bundle
from handheld.runtime.errors import BundleError
from handheld.runtime.manifest import Artifact
from handheld.runtime.session import open_session
from handheld.runtime.verify import verify

from .conftest import small_decoder


def decoder(preset: str, *, causal: bool = False, frames: int, size: int) -> tuple[TurboVAEDecoder, torch.Tensor]:
    torch.manual_seed(0)
    model = small_decoder() if preset == "small" else TurboVAEDecoder.from_preset(preset, causal=causal)
    return model, torch.randn(model.spec.latent_shape(frames=frames, height=size, width=size))


def lower(
    model: nn.Module, latents: torch.Tensor, out: Path, target: str, precision: str | None = "fp32"
) -> Bundle:
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
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str | None], Bundle]:
    """Bundles of a small decoder, each lowered once for the whole module."""

    @functools.cache
    def bundle(target: str, precision: str | None) -> Bundle:
        model, latents = decoder("small", frames=5, size=16)
        return lower(model, latents, tmp_path_factory.mktemp(target) / "bundle", target, precision)

    return bundle


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["android", "onnx"])
def test_artefact_computes_what_the_decoder_does(target: str, precision: str, bundles) -> None:
    bundle = bundles(target, precision)
    assert bundle.artifacts[0].tolerance.fault(difference(bundle), math.inf) == ""
    assert bundle.artifacts[0].precision == precision


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("ios", None),
        ("ios", "pal4"),
        ("ios16", "pal6"),
        ("ios18", "int8"),
        ("ios-executorch", None),
    ],
)
def test_core_ml_program_computes_what_the_decoder_does(target: str, precision: str | None, bundles) -> None:
    bundle = bundles(target, precision)
    verdict = verify_coreml(bundle, bundle.artifacts[0])
    assert (verdict.status, verdict.reason) == ("pass", "")
    assert verdict.runtime_version == "reference evaluator"


def test_a_pte_without_a_core_ml_delegate_is_not_taken_apart(bundles, tmp_path: Path) -> None:
    bundle = bundles("android", "fp32")
    with pytest.raises(UnsupportedProgram, match=r"delegates \['XnnpackBackend'\]; .* takes one call"):
        extract_package(bundle.path / "android" / "decoder.pte", tmp_path, pte.METHOD)


@pytest.mark.parametrize("content", [b"", b"\xa5" * 1000])
def test_a_damaged_pte_is_one_clear_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "decoder.pte").write_bytes(content)
    with pytest.raises(ExportError, match=r"decoder\.pte holds no whole Core ML delegate: .*Export it again"):
        extract_package(tmp_path / "decoder.pte", tmp_path, pte.METHOD)


def test_who_names_no_precision_gets_the_targets_own(bundles) -> None:
    assert bundles("ios", None).artifacts[0].precision == "fp16"
    assert bundles("android-vulkan", None).artifacts[0].precision == "fp16"
    assert {name: t.default_precision for name, t in TARGETS.items() if t.default_precision != "fp16"} == {
        "android": "fp32",
        "onnx": "fp32",
    }
    assert all(t.default_precision in t.precisions for t in TARGETS.values())


def test_fewer_bits_make_smaller_packages(bundles) -> None:
    fp16, int8, pal6, pal4 = (
        bundles(target, precision).artifacts[0]
        for target, precision in (("ios", None), ("ios18", "int8"), ("ios16", "pal6"), ("ios", "pal4"))
    )
    assert fp16.size_bytes > 1.5 * int8.size_bytes > 1.5 * pal6.size_bytes > 1.5 * pal4.size_bytes
    operations = pal4.settings["operations"]
    assert operations["constexpr_lut_to_dense"] > 0
    assert operations["conv"] == fp16.settings["operations"]["conv"]


@pytest.mark.parametrize(
    ("target", "precision"),
    [("android", "fp32"), ("android", "fp16"), ("android-vulkan", None), ("ios-executorch", None)],
)
def test_pte_is_one_delegate_with_nothing_outside(target: str, precision: str | None, bundles) -> None:
    assert_wholly_delegated(bundles(target, precision).artifacts[0])


def assert_wholly_delegated(artifact: Artifact) -> None:
    assert artifact.delegation["delegates"] == 1
    assert artifact.delegation["ops_outside"] == {}


def test_a_vulkan_artefact_is_not_verified_here_rather_than_failed(bundles) -> None:
    (verdict,) = verify(bundles("android-vulkan", None))
    assert verdict.status == "not verified"
    assert "without the Vulkan delegate" in verdict.reason


def test_what_the_vulkan_delegate_is_given_computes_what_the_decoder_does() -> None:
    model, latents = decoder("small", frames=3, size=16)
    graph = capture(model, (latents,))
    apply(graph, TARGETS["android-vulkan"].precisions["fp32"].rewrites)
    with quiet(), torch.no_grad():
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        (delegate,) = pte.delegates_of(pte.to_edge({"forward": (graph, (latents,))}, VulkanPartitioner()))
        assert (delegate(latents)[0] - model(latents)).abs().max() < 1e-4


class _Kept(nn.Module):
    """A stride in time is what no rewrite takes; the delegate takes no 3D convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 3, 3, stride=(2, 1, 1), padding=(0, 1, 1))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.conv(latents.relu())


def test_what_vulkan_refuses_is_in_the_manifest_with_the_reason(tmp_path: Path) -> None:
    (artifact,) = lower(_Kept(), torch.randn(1, 4, 5, 6, 6), tmp_path / "bundle", "android-vulkan").artifacts
    assert artifact.delegation["ops_outside"] == {"aten::convolution": 1}
    assert artifact.delegation["ops_inside"]["aten::relu"] == 1
    (refused,) = artifact.delegation["refused"]
    assert refused == {
        "op": "aten::convolution",
        "shape": [1, 3, 2, 6, 6],
        "reason": "op does not support high dim tensors",
    }


@pytest.mark.slow
def test_full_width_ltx_is_wholly_delegated_and_right(tmp_path: Path) -> None:
    model, latents = decoder("ltx", frames=9, size=64)
    bundle = lower(model, latents, tmp_path / "bundle", "android")
    assert bundle.artifacts[0].delegation["ops_outside"] == {}
    assert difference(bundle) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("preset", [*PRESETS])
@pytest.mark.parametrize("target", [*TARGETS])
def test_every_preset_lowers_and_agrees(target: str, preset: str, causal: bool, tmp_path: Path) -> None:
    spec = PRESETS[preset].spec
    model, latents = decoder(preset, causal=causal, frames=spec.frames(2), size=2 * spec.spatial)
    bundle = lower(model, latents, tmp_path / "bundle", target, None)
    (artifact,) = bundle.artifacts
    if artifact.delegation is not None:
        assert_wholly_delegated(artifact)
    if artifact.runtime in REFERENCE_RUNTIMES:
        verdict = verify_coreml(bundle, artifact)
        assert (verdict.status, verdict.reason) == ("pass", "")
    elif artifact.runtime != "executorch-vulkan":
        assert difference(bundle) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "pal8", "pal6", "pal4"])
@pytest.mark.parametrize("target", ["ios16", "ios18"])
def test_compressed_full_width_ltx_is_within_its_tolerance(target: str, precision: str, tmp_path: Path) -> None:
    model, latents = decoder("ltx", frames=9, size=64)
    bundle = lower(model, latents, tmp_path / "bundle", target, precision)
    verdict = verify_coreml(bundle, bundle.artifacts[0])
    assert (verdict.status, verdict.reason) == ("pass", "")


# The causal form of one preset is for every day: convolutions and shuffles are the same in all.
@pytest.mark.parametrize(
    ("preset", "causal"),
    [
        *((preset, False) for preset in PRESETS),
        ("ltx", True),
        *(pytest.param(preset, True, marks=pytest.mark.slow) for preset in PRESETS if preset != "ltx"),
    ],
)
def test_rewritten_graphs_hold_no_3d_convolution_and_no_rank_6(preset: str, causal: bool) -> None:
    spec = PRESETS[preset].spec
    model, latents = decoder(preset, causal=causal, frames=spec.frames(2), size=spec.spatial)
    captured = capture(model, (latents,))
    for rewrites in {target.precisions["fp32"].rewrites for target in TARGETS.values()}:
        graph = copy.deepcopy(captured)
        report = apply(graph, rewrites)
        assert not any(entry.refused for entry in report)
        assert not any(is_call(node, torch.ops.aten.conv3d.default) for node in graph.graph.nodes)
        assert max_rank(graph) == 5
        convolutions = [n for n in graph.graph.nodes if is_call(n, torch.ops.aten.conv2d.default)]
        assert all(len(shape_of(n)) == 4 for n in convolutions)
        with torch.no_grad():
            assert (graph(latents) - model(latents)).abs().max() < 1e-4


@pytest.mark.parametrize("preset", [*PRESETS])
def test_on_stacked_frames_only_the_ends_are_of_rank_5_and_time_upsampling_alone_transposes(preset: str) -> None:
    spec = PRESETS[preset].spec
    model, latents = decoder(preset, frames=spec.frames(2), size=spec.spatial)
    graph = capture(model, (latents,))
    report = apply(graph, TARGETS["android-vulkan"].precisions["fp16"].rewrites)
    applied = {record.name: record.applied for record in report}
    calls = [n for n in graph.graph.nodes if n.op == "call_function"]
    assert [len(shape_of(n)) for n in calls if len(shape_of(n)) > 4] == [5]
    assert len(shape_of(calls[-1])) == 5
    transposes = [n for n in calls if is_call(n, torch.ops.aten.transpose.int)]
    assert len(transposes) == applied["interleave_frames_stacked"] > 0
    convolutions = [n for n in calls if is_call(n, torch.ops.aten.conv2d.default)]
    assert {shape_of(n)[0] for n in convolutions} == {1}


def test_core_ml_program_transposes_at_its_ends_and_where_time_is_upsampled(bundles) -> None:
    (artifact,) = bundles("ios", None).artifacts
    applied = {record.name: record.applied for record in artifact.rewrites}
    assert artifact.settings["operations"]["transpose"] == 2 + applied["interleave_frames"]


def test_core_ml_program_has_the_stated_inputs_and_no_op_over_rank_5(bundles) -> None:
    import coremltools as ct

    bundle = bundles("ios", None)
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
    model, latents = decoder("small", frames=3, size=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lower(model, latents, tmp_path / "bundle", "onnx", "fp16")
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_manifest_records_what_the_rewrites_did(bundles) -> None:
    (artifact,) = bundles("onnx", "fp32").artifacts
    applied = {record.name: record.applied for record in artifact.rewrites}
    convolutions = sum(isinstance(m, nn.Conv3d) for m in small_decoder().modules())
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
        (
            [],
            "fp32",
            "No target given; there are: ios, ios16, ios18, ios27, ios-executorch, android, android-vulkan, onnx",
        ),
        (["windows"], "fp32", "no target 'windows'; there are: ios, "),
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
    model, latents = decoder("small", frames=3, size=16)
    for wrong in (latents.half(), latents.expand(2, -1, -1, -1, -1), latents[0]):
        with pytest.raises(ExportError, match="one clip"):
            lower(model, wrong, tmp_path / "bundle", "onnx")


def test_an_existing_bundle_is_not_replaced_unasked(tmp_path: Path) -> None:
    model, latents = decoder("small", frames=3, size=16)
    lower(model, latents, tmp_path / "bundle", "onnx")
    with pytest.raises(BundleError):
        lower(model, latents, tmp_path / "bundle", "onnx")
