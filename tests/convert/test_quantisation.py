"""8-bit precisions: what they hold, how close they are, what they refuse, and the choice of a precision."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handheld.convert import TARGETS, ExportError, export, export_smallest, resolve_targets
from handheld.convert.graph.capture import capture
from handheld.convert.graph.nodes import is_call, shape_of
from handheld.convert.graph.rewrite import apply
from handheld.convert.onnx import quantize as qdq
from handheld.convert.precision.layers import convolutions
from handheld.convert.source import source_of
from handheld.convert.target import Target
from handheld.latents_file import write_latents
from handheld.models import ModelError, TurboVAEDecoder
from handheld.runtime.bundle import Bundle, read_bundle
from handheld.runtime.session.ort import MODEL
from handheld.runtime.verify import verify
from handheld.sources import Source, with_latents_of

from .conftest import small_decoder

aten = torch.ops.aten


@functools.cache
def small() -> tuple[TurboVAEDecoder, torch.Tensor]:
    model = small_decoder()
    return model, torch.randn(model.spec.latent_shape(frames=3, height=32, width=32))


def lower(out: Path, target: str, precision: str, calibration: Sequence[torch.Tensor] = ()) -> Bundle:
    model, latents = small()
    return export(
        model,
        latents,
        out,
        targets=resolve_targets([target], precision),
        precision=precision,
        calibration=calibration,
        name="test",
        provenance={},
    )


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Bundle]:
    """Bundles of a small decoder, each lowered once for the whole module."""

    @functools.cache
    def bundle(target: str, precision: str) -> Bundle:
        return lower(tmp_path_factory.mktemp(target) / "bundle", target, precision)

    return bundle


@pytest.mark.parametrize("target", ["onnx", "android"])
def test_int8_artefact_runs_and_stays_over_its_floor(
    target: str, bundles, skip_where_8_bit_sums_saturate: Callable[[Target], None]
) -> None:
    skip_where_8_bit_sums_saturate(TARGETS[target])
    (verdict,) = verify(bundles(target, "int8"))
    assert verdict.status == "pass", verdict.reason
    assert verdict.tolerance.min_psnr_db == 35.0
    assert 35.0 <= verdict.psnr_db < 100.0  # fp32 would be far over 100 dB


def test_onnx_int8_holds_int8_weights_and_is_less_than_half_as_large(bundles) -> None:
    import onnx

    bundle = bundles("onnx", "int8")
    (artifact,) = bundle.artifacts
    graph = onnx.load(bundle.locate(artifact.path) / MODEL).graph
    weights = [w for w in graph.initializer if w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 4]
    assert len(weights) == artifact.settings["quantized"]["convolutions"] == 9
    kinds = [node.op_type for node in graph.node]
    assert "QuantizeLinear" in kinds
    assert artifact.size_bytes < bundles("onnx", "fp32").artifacts[0].size_bytes / 2


def test_onnxruntime_fuses_every_8_bit_convolution(bundles, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    bundle = bundles("onnx", "int8")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = os.fspath(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(bundle.locate("onnx/decoder") / MODEL, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node]
    assert kinds.count("QLinearConv") == bundle.artifacts[0].settings["quantized"]["convolutions"]


def test_android_int8_is_one_delegate_with_nothing_outside(bundles) -> None:
    (artifact,) = bundles("android", "int8").artifacts
    assert artifact.delegation["delegates"] == 1
    assert artifact.delegation["ops_outside"] == {}
    assert artifact.settings["quantized"]["convolutions"] == 9


def test_first_last_and_depthwise_convolutions_stay_in_fp32_with_the_reason() -> None:
    model, latents = small()
    graph = capture(model, (latents,))
    apply(graph, TARGETS["onnx"].precision("int8").rewrites)
    choice = convolutions(graph)
    every = [node for node in graph.graph.nodes if is_call(node, aten.conv2d.default)]
    assert every[0] not in choice.quantized
    assert every[-1] not in choice.quantized
    assert all(shape_of(node.args[1])[1] > 1 for node in choice.quantized)
    assert len(choice.quantized) + sum(choice.kept.values()) == len(every)
    assert [reason for reason in choice.kept if reason.startswith("reads the latents")]
    assert [reason for reason in choice.kept if reason.startswith("makes the frames")]
    assert [reason for reason in choice.kept if reason.startswith("depthwise")]


def test_ranges_come_from_the_calibration_latents() -> None:
    model, latents = small()
    graph = capture(model, (latents,))
    apply(graph, TARGETS["onnx"].precision("int8").rewrites)
    loud = 6.0 * latents
    with torch.no_grad():
        wanted = model(loud)
        errors = [
            (qdq.quantize(graph, [clip])[0](loud) - wanted).square().mean().item() for clip in (loud, latents)
        ]
    assert errors[0] < errors[1]


def test_quantising_leaves_the_graph_alone() -> None:
    model, latents = small()
    graph = capture(model, (latents,))
    apply(graph, TARGETS["onnx"].precision("int8").rewrites)
    before = graph.code
    qdq.quantize(graph, [latents])
    assert graph.code == before
    with torch.no_grad():
        assert (graph(latents) - model(latents)).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(1, 48, 2, 4, 8), (1, 16, 2, 4, 4), (2, 48, 2, 4, 4)])
def test_calibration_latents_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Calibration latents are \(.*; the export is for \(1, 48, 2, 4, 4\)"):
        lower(tmp_path / "bundle", "onnx", "int8", [torch.randn(shape)])
    assert list(tmp_path.iterdir()) == []


def smallest(out: Path, floor: float) -> Bundle:
    model, latents = small()
    return export_smallest(
        model,
        latents,
        out,
        targets=resolve_targets(["onnx"], "fp32"),
        min_psnr_db=floor,
        name="test",
        provenance={"source": "test"},
    )


@pytest.mark.parametrize(("floor", "kept"), [(30.0, "int8"), (60.0, "fp16"), (100.0, "fp32")])
def test_auto_keeps_the_smallest_that_reaches_the_floor_and_says_why(
    floor: float, kept: str, tmp_path: Path, skip_where_8_bit_sums_saturate: Callable[[Target], None]
) -> None:
    if kept == "int8":
        skip_where_8_bit_sums_saturate(TARGETS["onnx"])
    smallest(tmp_path / "bundle", floor)
    (artifact,) = read_bundle(tmp_path / "bundle").artifacts
    assert artifact.precision == kept
    auto = artifact.settings["auto"]
    assert auto["min_psnr_db"] == floor
    trials = {trial["precision"]: trial for trial in auto["trials"]}
    assert [name for name, trial in trials.items() if trial["kept"]] == [kept]
    assert all(trial["why"] for trial in trials.values())
    assert trials[kept]["size_bytes"] == artifact.size_bytes
    assert trials[kept]["psnr_db"] >= floor
    for trial in trials.values():
        good = trial["psnr_db"] is not None and trial["psnr_db"] >= floor
        assert not good or trial["size_bytes"] >= artifact.size_bytes
    (verdict,) = verify(read_bundle(tmp_path / "bundle"))  # golden tensors and hashes came along
    assert verdict.status == "pass", verdict.reason


def test_auto_leaves_nothing_behind_where_no_precision_reaches_the_floor(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"No precision of target onnx is known to reach 500 dB .*below the floor"
    ):
        smallest(tmp_path / "bundle", 500.0)
    assert list(tmp_path.iterdir()) == []


def source(**facts: object) -> Source:
    return replace(source_of(small()[0], "tiny", {}), **facts)


def test_calibration_takes_real_clips_cropped_and_not_the_golden_one() -> None:
    clips = torch.randn(4, 48, 3, 8, 6)
    real = source(latents=clips)
    example, origin = real.example(3, 32, 32)
    assert torch.equal(example[0], clips[0, :, :2, 2:6, 1:5])
    assert origin == "a held-out clip of the run"
    chosen, what = real.calibration(example)
    assert [torch.equal(clip[0], clips[i, :, :2, 2:6, 1:5]) for i, clip in enumerate(chosen, 1)] == [True] * 3
    assert what == "3 held-out clips of the run"


def test_calibration_without_large_enough_clips_is_the_example_and_says_so() -> None:
    for given in (source(), source(latents=torch.randn(4, 48, 2, 3, 3))):
        example, _ = given.example(3, 32, 32)
        chosen, what = given.calibration(example)
        assert chosen == (example,)
        assert "--calibration FILE" in what


def test_calibration_of_one_clip_is_that_clip() -> None:
    one = source(latents=torch.randn(1, 48, 2, 4, 4))
    chosen, what = one.calibration(one.example(None, None, None)[0])
    assert len(chosen) == 1
    assert what == "1 held-out clip of the run"


def test_latents_of_a_file_become_golden_input_and_calibration(tmp_path: Path) -> None:
    clips = np.random.default_rng(0).standard_normal((3, 48, 2, 4, 4)).astype(np.float32)
    write_latents(tmp_path / "real.safetensors", clips, {})
    real = with_latents_of(source(), tmp_path / "real.safetensors")
    example, origin = real.example(None, None, None)
    assert np.array_equal(example.numpy(), clips[:1])
    assert origin == "a clip of real.safetensors"
    assert real.calibration(example)[1] == "2 clips of real.safetensors"


def test_latents_of_another_space_are_refused(tmp_path: Path) -> None:
    write_latents(tmp_path / "other.safetensors", np.zeros((1, 16, 2, 4, 4), np.float32), {})
    with pytest.raises(ModelError, match=r"other\.safetensors does not fit tiny: .*48"):
        with_latents_of(source(), tmp_path / "other.safetensors")
