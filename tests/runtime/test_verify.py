"""Verification against golden tensors, each artefact in a process of its own."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from handheld.runtime.bundle import Bundle
from handheld.runtime.errors import BundleError
from handheld.runtime.session import SESSIONS
from handheld.runtime.verify import verify


def test_each_artefact_gets_a_verdict_in_the_order_of_the_manifest(make_bundle: Callable) -> None:
    verdicts = {v.artifact.name: v for v in verify(make_bundle("onnx", "android", "ios"))}
    assert list(verdicts) == ["onnx", "android", "ios"]
    for name in ("onnx", "android"):
        assert (verdicts[name].status, verdicts[name].reason) == ("pass", "")
        assert verdicts[name].max_abs_error < 1e-5
        assert verdicts[name].psnr_db > 100
        assert verdicts[name].runtime_version[0].isdigit()
    if sys.platform != "darwin":
        assert verdicts["ios"].status == "not verified"
        assert "macOS only" in verdicts["ios"].reason
        assert verdicts["ios"].max_abs_error is None


def test_error_and_psnr_are_those_of_the_difference(make_bundle: Callable, lowered) -> None:
    """A model that returns nothing but 0.25: the expected figures follow from the golden output alone."""
    bundle = make_bundle(models={"onnx": constant_model(0.25)})
    (verdict,) = verify(bundle)
    difference = lowered.frames.astype(np.float64) - 0.25
    assert verdict.status == "fail"
    assert "above the tolerance, 0.0001" in verdict.reason
    assert verdict.max_abs_error == pytest.approx(np.abs(difference).max())
    assert verdict.psnr_db == pytest.approx(10 * math.log10(2.0**2 / np.mean(difference**2)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_output_that_is_not_finite_fails(make_bundle: Callable, value: float) -> None:
    (verdict,) = verify(make_bundle(models={"onnx": constant_model(value)}))
    assert (verdict.status, verdict.reason) == ("fail", "The output holds NaN or infinity.")


def test_an_altered_artefact_fails_unloaded_and_the_others_are_judged(make_bundle: Callable) -> None:
    bundle: Bundle = make_bundle("onnx", "ios", models=None)
    for artifact in ("onnx", "ios"):
        path = bundle.path / bundle.artifact(artifact).path
        path = path / "Manifest.json" if path.is_dir() else path
        path.write_bytes(path.read_bytes()[:-1])
    for verdict in verify(bundle):
        assert verdict.status == "fail"
        assert "is truncated" in verdict.reason
        assert verdict.runtime_version is None


def test_altered_golden_tensors_fail_every_artefact(make_bundle: Callable) -> None:
    bundle: Bundle = make_bundle("onnx", "ios")
    path = bundle.path / "golden.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    verdicts = verify(bundle)
    assert [v.status for v in verdicts] == ["fail", "fail"]
    assert all("golden.safetensors has grown" in v.reason for v in verdicts)


def test_a_missing_runtime_is_not_a_failure(make_bundle: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SESSIONS["onnxruntime"], "unavailable", classmethod(lambda cls: "onnxruntime is not installed")
    )
    (verdict,) = verify(make_bundle("onnx"))
    assert (verdict.status, verdict.reason) == ("not verified", "onnxruntime is not installed")


def test_a_model_that_does_not_load_fails_with_the_runtimes_words(make_bundle: Callable, lowered) -> None:
    (verdict,) = verify(make_bundle(models={"android": lowered.paths["android"].read_bytes()[:300]}))
    assert verdict.status == "fail"
    assert "executorch could not load decoder.pte" in verdict.reason
    assert "File size is too small" in verdict.reason


def test_a_crash_of_the_runtime_is_a_failure_with_the_signals_name(make_bundle: Callable) -> None:
    crashed = threading.Thread(target=crash_the_first_child)
    crashed.start()
    (verdict,) = verify(make_bundle("onnx"))
    crashed.join()
    assert verdict.status == "fail"
    assert "died of SIGSEGV" in verdict.reason


def crash_the_first_child() -> None:
    own = psutil.Process()
    for _ in range(5000):
        if workers := [c for c in own.children() if "handheld.runtime.worker" in " ".join(c.cmdline())]:
            os.kill(workers[0].pid, signal.SIGSEGV)
            return
        time.sleep(0.002)


def test_only_the_named_artefacts_are_verified(make_bundle: Callable) -> None:
    bundle = make_bundle("onnx", "ios")
    assert [v.artifact.name for v in verify(bundle, only=["ios"])] == ["ios"]
    with pytest.raises(BundleError, match='no artefact "tvm"'):
        verify(bundle, only=["tvm"])


def constant_model(value: float) -> bytes:
    """ONNX: frames that are `value` everywhere."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Expand", ["value", "shape"], ["frames"])],
        "constant",
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, [1, 4, 2, 8, 8])],
        [helper.make_tensor_value_info("frames", TensorProto.FLOAT, [1, 3, 2, 16, 16])],
        [
            helper.make_tensor("value", TensorProto.FLOAT, [1], [value]),
            helper.make_tensor("shape", TensorProto.INT64, [5], [1, 3, 2, 16, 16]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()
