"""Verification of Core ML artefacts by the reference evaluator: what passes, what fails, and what is blamed."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from handheld.convert import TARGETS, export
from handheld.convert.coreml.evaluator import evaluate, load_program, verify_coreml, with_reference
from handheld.convert.coreml.evaluator.localize import describe, first_mismatch
from handheld.convert.graph.capture import capture
from handheld.convert.graph.rewrite import apply
from handheld.models import PRESETS, TurboVAEDecoder
from handheld.runtime import files
from handheld.runtime.bundle import Bundle, read_bundle
from handheld.runtime.manifest import Artifact
from handheld.runtime.verify import Verdict, verify

IOS = TARGETS["ios"]


def bundle_of(
    model: nn.Module, latents: Tensor, out: Path, precision: str = "fp32", *, as_is: bool = False
) -> Bundle:
    """An exported bundle of one Core ML artefact; `as_is` leaves the rewrites out."""
    target = IOS
    if as_is:
        target = replace(IOS, precisions={n: replace(p, rewrites=()) for n, p in IOS.precisions.items()})
    return export(model, latents, out, targets=[target], precision=precision, name="test", provenance={})


def student(preset: str, *, causal: bool, frames: int, size: int) -> tuple[TurboVAEDecoder, Tensor]:
    torch.manual_seed(0)
    model = TurboVAEDecoder.from_preset(preset, causal=causal)
    return model, torch.randn(model.spec.latent_shape(frames=frames, height=size, width=size))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The tiny preset through the ios target, 3 frames of 16x16; do not change the files."""

    @functools.cache
    def bundle(precision: str) -> Bundle:
        model, latents = student("tiny", causal=False, frames=3, size=16)
        return bundle_of(model, latents, tmp_path_factory.mktemp("tiny") / "bundle", precision)

    return bundle


def judge(bundle: Bundle) -> Verdict:
    return verify_coreml(bundle, bundle.artifacts[0])


def rehashed(bundle: Bundle) -> tuple[Bundle, Artifact]:
    """The bundle as someone would pass it off who altered a file and the manifest's hash with it."""
    artifact = bundle.artifacts[0]
    path = bundle.path / artifact.path
    artifact = replace(artifact, sha256=files.sha256_of(path), size_bytes=files.size_of(path))
    return bundle, artifact


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 0.02)])
def test_tiny_program_computes_what_the_eager_decoder_does(precision: str, limit: float, tiny) -> None:
    verdict = judge(tiny(precision))
    assert (verdict.status, verdict.reason) == ("pass", "")
    assert verdict.runtime_version == "reference evaluator"
    assert verdict.max_abs_error < min(limit, verdict.tolerance.max_abs)
    assert verdict.psnr_db > 50


def test_fp16_program_errs_more_as_typed_than_in_fp32_and_overflows_nowhere(tiny) -> None:
    bundle = tiny("fp16")
    program = load_program(bundle.path / bundle.artifacts[0].path)
    inputs, outputs = bundle.golden()
    typed, exact = (evaluate(program, inputs, typed=typed) for typed in (True, False))
    errors = [float(np.abs(run.outputs["frames"] - outputs["frames"]).max()) for run in (typed, exact)]
    assert errors[0] > errors[1] > 0
    assert typed.overflow is None
    assert {v.dtype for operation in program.operations for v in operation.outputs} == {"fp16", "fp32"}


def test_operations_are_described_with_their_source_module(tiny) -> None:
    bundle = tiny("fp16")
    operations = load_program(bundle.path / bundle.artifacts[0].path).operations
    texts = [describe(operation) for operation in operations]
    assert texts[0] == "cast latents_to_fp16"
    assert "conv conv2d_cast_fp16, of conv_in.conv" in texts
    assert "conv conv2d_1_cast_fp16, the last parameters before it being those of conv_in.conv" in texts
    modules = {name for name, _ in TurboVAEDecoder.from_preset("tiny").named_modules()}
    convolutions = [text.partition(", of ")[2] for text in texts if ", of " in text]
    assert len(convolutions) > 15
    assert set(convolutions) <= modules


def test_an_altered_weight_fails_by_hash_and_with_its_hash_altered_too_by_value(tiny, tmp_path: Path) -> None:
    original = tiny("fp16")
    shutil.copytree(original.path, tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    path = bundle.path / bundle.artifacts[0].path
    weight = next(o for o in load_program(path).operations if o.kind == "conv").inputs["weight"].value
    file = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    whole = file.read_bytes()
    assert whole.count(weight.tobytes()) == 1
    file.write_bytes(whole.replace(weight.tobytes(), (-weight).tobytes()))

    verdict = judge(bundle)
    assert (verdict.status, verdict.runtime_version) == ("fail", None)
    assert "was altered: SHA-256" in verdict.reason

    verdict = verify_coreml(*rehashed(bundle))
    assert verdict.status == "fail"
    assert verdict.max_abs_error > verdict.tolerance.max_abs
    assert f"above the tolerance, {verdict.tolerance.max_abs}, in the reference evaluator" in verdict.reason
    assert "not the rounding of results, but the program's operations, or its weights" in verdict.reason


def test_with_the_torch_graph_a_wrong_operation_is_named_with_its_module(tiny, tmp_path: Path) -> None:
    model, latents = student("tiny", causal=False, frames=3, size=16)
    graph = capture(model, (latents,))
    apply(graph, IOS.precisions["fp16"].rewrites)
    original = tiny("fp16")
    shutil.copytree(original.path, tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    path = bundle.path / bundle.artifacts[0].path
    program = load_program(path)
    assert first_mismatch(program, graph, bundle.golden()[0], above=0.01) is None

    convolutions = [o for o in program.operations if o.kind == "conv" and "conv2_pointwise" in o.parameter]
    wrong = next(o for o in convolutions if describe(o).endswith(", of mid_block.resnets.1.conv2.pointwise_conv"))
    weight = wrong.inputs["weight"].value
    file = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    file.write_bytes(file.read_bytes().replace(weight.tobytes(), (-weight).tobytes()))
    verdict = verify_coreml(*rehashed(bundle), graph)
    assert verdict.status == "fail"
    assert (
        f"The first that does is conv {wrong.name}, of mid_block.resnets.1.conv2.pointwise_conv" in verdict.reason
    )


def test_a_corrupt_package_fails_with_one_clear_message(tiny, tmp_path: Path) -> None:
    original = tiny("fp16")
    shutil.copytree(original.path, tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    (bundle.path / bundle.artifacts[0].path / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(
        b"\xff" * 99
    )
    verdict = verify_coreml(*rehashed(bundle))
    assert verdict.status == "fail"
    assert verdict.reason.startswith("decoder.mlpackage is no whole Core ML package")


class _Norm(nn.Module):
    """A convolution and a channel RMSNorm, whose square is over fp16's range for latents of some hundreds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(4, 3, 1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.stem(latents)
        return x * (x.pow(2).mean(1, keepdim=True) + 1e-8).rsqrt()


def test_an_unsafe_norm_overflows_where_it_squares_and_its_rewrite_does_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, latents = _Norm(), torch.randn(1, 4, 2, 4, 4) * 800
    verdict = judge(bundle_of(model, latents, tmp_path / "unsafe", "fp16", as_is=True))
    assert verdict.status == "fail"
    assert "the first operation that makes infinity of finite fp16 values is" in verdict.reason
    assert any(kind in verdict.reason for kind in (" is square ", " is pow ", " is mul "))
    assert "those of stem (underscores" in verdict.reason
    assert "reference evaluator" in verdict.reason

    verdict = judge(bundle_of(model, latents, tmp_path / "safe", "fp16"))
    assert (verdict.status, verdict.reason) == ("pass", "")


class _Cancels(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return (torch.tanh(latents[:, :3]) + 2048.0) - 2047.0


def test_rounding_that_goes_too_far_is_blamed_on_the_operation_that_shows_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = bundle_of(_Cancels(), torch.randn(1, 4, 2, 4, 4), tmp_path / "bundle", "fp16", as_is=True)
    verdict = judge(bundle)
    assert verdict.status == "fail"
    assert verdict.max_abs_error > 0.5
    assert "the first operation that fp16 puts off by more than 5%" in verdict.reason
    assert " is sub " in verdict.reason


class _CumulativeSum(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return torch.cumsum(latents[:, :3], 2)


def test_a_program_with_an_unknown_operation_is_not_verified_and_it_is_named(tmp_path: Path) -> None:
    verdict = judge(bundle_of(_CumulativeSum(), torch.randn(1, 4, 2, 4, 4), tmp_path / "bundle"))
    assert (verdict.status, verdict.runtime_version) == ("not verified", None)
    assert "1 operations that the reference evaluator does not know: cumsum (" in verdict.reason


def test_without_coremltools_nothing_is_verified_and_the_remedy_is_named(tiny, monkeypatch) -> None:
    bundle = tiny("fp16")
    monkeypatch.setitem(sys.modules, "coremltools", None)
    verdict = judge(bundle)
    assert verdict.status == "not verified"
    assert "pip install 'handheld[ios]'" in verdict.reason


def test_only_core_ml_artefacts_that_cannot_run_here_go_to_the_reference_evaluator(tiny) -> None:
    bundle = tiny("fp32")
    (artifact,) = bundle.artifacts
    none = Verdict(artifact, "not verified", "macOS only", None, None, artifact.tolerance, None)
    ran = replace(none, status="fail", reason="as the device said", runtime_version="9.0")
    other = replace(none, artifact=replace(artifact, runtime="executorch"))
    found = with_reference(bundle, [ran, none, other])
    assert [v.status for v in found] == ["fail", "pass", "not verified"]
    assert found[0] is ran
    assert found[2] is other


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML itself verifies on macOS")
def test_command_line_verifies_core_ml_by_the_reference_evaluator(tiny, monkeypatch, capfd) -> None:
    from handheld.cli import main

    bundle = tiny("fp16")
    assert [v.status for v in verify(bundle)] == ["not verified"]
    monkeypatch.setattr(sys, "argv", ["handheld", "verify", str(bundle.path)])
    with pytest.raises(SystemExit) as stop:
        main()
    row = next(line for line in capfd.readouterr().out.splitlines() if line.strip().startswith("ios"))
    assert not stop.value.code
    assert row.split()[1] == "pass"
    assert row.rstrip().endswith("coreml reference evaluator")


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("preset", [*PRESETS])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_preset_passes(precision: str, preset: str, causal: bool, tmp_path: Path) -> None:
    spec = PRESETS[preset].spec
    model, latents = student(preset, causal=causal, frames=spec.frames(2), size=2 * spec.spatial)
    verdict = judge(bundle_of(model, latents, tmp_path / "bundle", precision))
    assert (verdict.status, verdict.reason) == ("pass", "")
