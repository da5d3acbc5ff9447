"""Sessions: real runtimes over a tiny decoder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from handheld.runtime.bundle import Bundle
from handheld.runtime.errors import BundleError, RuntimeFailure, RuntimeMissing
from handheld.runtime.session import SESSIONS, coreml, open_session
from handheld.runtime.session.native_stderr import held_back

RUNNABLE = ["onnx", "android"]


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_session_computes_what_the_eager_model_computes(make_bundle: Callable, name: str) -> None:
    bundle = make_bundle(name)
    inputs, golden = bundle.golden()
    with open_session(bundle, name) as session:
        for _ in range(2):
            outputs = session.run(inputs)
            assert list(outputs) == ["frames"]
            assert outputs["frames"].dtype == np.float32
            np.testing.assert_allclose(outputs["frames"], golden["frames"], atol=1e-5)


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_result_of_a_run_outlives_the_next_run_and_the_session(make_bundle: Callable, name: str) -> None:
    bundle = make_bundle(name)
    inputs, golden = bundle.golden()
    session = open_session(bundle, bundle.artifact(name))
    first = session.run(inputs)["frames"]
    session.run({"latents": np.zeros_like(inputs["latents"])})
    session.close()
    np.testing.assert_allclose(first, golden["frames"], atol=1e-5)
    with pytest.raises(RuntimeFailure, match="is closed"):
        session.run(inputs)


GOOD = np.zeros((1, 4, 2, 8, 8), np.float32)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"latent": GOOD}, '"latent" is not an input; "latents" is missing'),
        ({}, '"latents" is missing'),
        ({"latents": GOOD[:, :3]}, '"latents" is float32 (1, 3, 2, 8, 8)'),
        ({"latents": GOOD[0]}, '"latents" is float32 (4, 2, 8, 8)'),
        ({"latents": GOOD.astype(np.float64)}, '"latents" is float64 (1, 4, 2, 8, 8)'),
    ],
)
def test_a_wrong_input_is_refused_with_what_was_given_and_wanted(
    make_bundle: Callable, name: str, inputs: dict[str, np.ndarray], says: str
) -> None:
    bundle = make_bundle(name)
    with open_session(bundle, name) as session, pytest.raises(RuntimeFailure) as caught:
        session.run(inputs)
    assert says in str(caught.value)
    assert '"latents" float32 (1, 4, 2, 8, 8) NCTHW' in str(caught.value)


@pytest.mark.parametrize("name", RUNNABLE)
def test_threads_are_what_was_asked_for(make_bundle: Callable, name: str) -> None:
    bundle = make_bundle(name)
    with open_session(bundle, name, threads=1) as session:
        assert session.threads == 1
    with open_session(bundle, name) as session:
        assert session.threads >= 1
    with pytest.raises(RuntimeFailure, match="threads=0"):
        open_session(bundle, name, threads=0)


@pytest.mark.parametrize("name", RUNNABLE)
def test_an_altered_artefact_is_not_loaded(make_bundle: Callable, name: str) -> None:
    bundle = make_bundle(name)
    path = bundle.path / bundle.artifact(name).path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="altered"):
        open_session(bundle, name)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("keep", [0, 300])
def test_a_model_that_the_runtime_cannot_read_is_our_error(
    make_bundle: Callable, lowered, name: str, keep: int
) -> None:
    bundle = make_bundle(models={name: lowered.paths[name].read_bytes()[:keep]})
    with pytest.raises(RuntimeFailure, match=f"{SESSIONS[bundle.artifact(name).runtime].runtime} could not load"):
        open_session(bundle, name)


def test_what_executorch_writes_about_a_bad_model_is_in_the_error(
    make_bundle: Callable, lowered, capfd: pytest.CaptureFixture
) -> None:
    bundle = make_bundle(models={"android": lowered.paths["android"].read_bytes()[:300]})
    with pytest.raises(RuntimeFailure, match=r"File size is too small.*(?s:.*)XnnpackBackend"):
        open_session(bundle, "android")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_model_that_returns_another_shape_than_the_manifest_says_is_refused(
    make_bundle: Callable, edit_manifest: Callable, name: str
) -> None:
    bundle = make_bundle(name)
    inputs, _ = bundle.golden()

    def widen(tree: dict) -> None:
        tree["outputs"][0]["shape"] = [1, 3, 2, 16, 17]
        tree["artifacts"][0]["methods"][0]["outputs"] = [[1, 3, 2, 16, 17]]

    bundle = edit_manifest(bundle, widen)
    with open_session(bundle, name) as session, pytest.raises(RuntimeFailure, match=r"16, 16.*says.*16, 17"):
        session.run(inputs)


def test_a_model_with_other_tensors_than_the_manifest_says_is_refused(
    make_bundle: Callable, edit_manifest: Callable
) -> None:
    def rename(tree: dict) -> None:
        tree["inputs"][0]["name"] = "z"

    with pytest.raises(RuntimeFailure, match=r"\['latents'\].*says.*\['z'\]"):
        open_session(edit_manifest(make_bundle("onnx"), rename), "onnx")

    def repeat(tree: dict) -> None:
        tree["inputs"].append(tree["inputs"][0] | {"name": "more"})
        tree["artifacts"][0]["methods"][0]["inputs"] *= 2

    with pytest.raises(RuntimeFailure, match="has 1 inputs and 1 outputs, the manifest says 2 and 1"):
        open_session(edit_manifest(make_bundle("android", name="b2"), repeat), "android")


def test_a_half_precision_model_takes_and_gives_fp32(make_bundle: Callable) -> None:
    bundle = make_bundle(models={"onnx": half_model()}, input_dtype="float16", output_dtype="float16")
    with open_session(bundle, "onnx") as session:
        frames = session.run({"latents": np.full((1, 4, 2, 8, 8), 0.1, np.float32)})["frames"]
    assert frames.dtype == np.float32
    assert np.unique(frames) == np.float32(np.float16(0.1))


def half_model() -> bytes:
    """fp16 ONNX: the first 3 channels, each pixel doubled."""
    from onnx import TensorProto, helper

    half = TensorProto.FLOAT16
    nodes = [
        helper.make_node("Slice", ["latents", "zero", "three", "one"], ["rgb"]),
        helper.make_node("Tile", ["rgb", "repeats"], ["frames"]),
    ]
    constants = {"zero": [0], "three": [3], "one": [1], "repeats": [1, 1, 1, 2, 2]}
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("latents", half, [1, 4, 2, 8, 8])],
        [helper.make_tensor_value_info("frames", half, [1, 3, 2, 16, 16])],
        [helper.make_tensor(name, TensorProto.INT64, [len(v)], v) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here")
def test_core_ml_says_that_it_needs_a_mac(make_bundle: Callable) -> None:
    bundle = make_bundle("ios")
    with pytest.raises(RuntimeMissing, match="ios cannot run here: Core ML runs on macOS only; this is"):
        open_session(bundle, "ios")
    with pytest.raises(RuntimeMissing, match="macOS only"):
        SESSIONS["coreml"].library_version()


def test_delegates_that_are_not_in_the_python_package_say_so() -> None:
    assert "without the Vulkan delegate" in (SESSIONS["executorch-vulkan"].unavailable() or "")
    if sys.platform != "darwin":
        assert "runs on macOS only; this is" in (SESSIONS["executorch-coreml"].unavailable() or "")


def test_core_ml_is_given_and_gives_tensors_by_name(make_bundle: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for coremltools: shows the order and the dtypes, not that Core ML runs."""

    class MLModel:
        def __init__(self, path: str) -> None:
            assert Path(path).is_dir()

        def predict(self, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            assert data["latents"].dtype == np.float16
            return {"other": GOOD, "frames": np.ones((1, 3, 2, 16, 16), np.float16)}

    monkeypatch.setattr(coreml.platform, "system", lambda: "Darwin")
    library = types.SimpleNamespace(__version__="9", models=types.SimpleNamespace(MLModel=MLModel), __spec__=None)
    monkeypatch.setitem(sys.modules, "coremltools", library)
    monkeypatch.setattr(coreml.importlib.util, "find_spec", lambda name: name)
    bundle = make_bundle("ios", input_dtype="float16")
    with open_session(bundle, "ios", threads=2) as session:
        assert session.threads is None
        assert session.run({"latents": GOOD})["frames"].dtype == np.float32


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_runtime_that_is_not_installed_is_named_with_its_extra(
    make_bundle: Callable, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bundle = make_bundle(name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeMissing, match=re.escape(f"pip install 'handheld[{name}]'")):
        open_session(bundle, name)


def test_importing_the_package_imports_no_runtime() -> None:
    code = """
import sys
import handheld.runtime.report, handheld.runtime.verify, handheld.runtime.profile, handheld.runtime.session
heavy = {"torch", "onnxruntime", "executorch", "coremltools", "matplotlib", "diffusers"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_executorch_loads_without_its_exporter_and_without_noise(make_bundle: Callable) -> None:
    bundle: Bundle = make_bundle("android")
    code = """
import sys
from handheld.runtime.bundle import read_bundle
from handheld.runtime.session import open_session
bundle = read_bundle(sys.argv[1])
with open_session(bundle, "android", threads=1) as session:
    session.run(bundle.golden()[0])
print("executorch.exir" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, bundle.path], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_held_back_stderr_drops_noise_only(capfd: pytest.CaptureFixture) -> None:
    noise = re.compile("noise")
    with held_back(noise):
        os.write(2, b"noise here\nnews\n")
        print("python's news", file=sys.stderr)
    assert capfd.readouterr().err == "news\npython's news\n"


def test_held_back_stderr_belongs_to_the_error(capfd: pytest.CaptureFixture) -> None:
    noise = re.compile("noise")

    def work() -> None:
        os.write(2, b"noise\nwhy it failed\n")
        raise ValueError

    with pytest.raises(ValueError), held_back(noise) as log:
        work()
    assert log.text == "why it failed\n"
    assert capfd.readouterr().err == ""
