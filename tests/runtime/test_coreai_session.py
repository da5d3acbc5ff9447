"""Core AI sessions: really executed here, damaged assets, processes whose results count and whose end does not."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from handheld.runtime.bundle import Bundle, BundleWriter, Method, TensorSpec, Tolerance
from handheld.runtime.errors import RuntimeFailure, RuntimeMissing
from handheld.runtime.profile import Subject, profile
from handheld.runtime.session import SESSIONS, coreai, open_session
from handheld.runtime.verify import verify

SESSION = SESSIONS["coreai"]
LATENTS, FRAMES = (1, 4, 2, 8, 8), (1, 3, 2, 16, 16)

needs_coreai = pytest.mark.skipif(bool(SESSION.unavailable()), reason=str(SESSION.unavailable()))
needs_linux = pytest.mark.skipif(platform.system() != "Linux", reason="what Core AI is away from Apple's systems")


@pytest.fixture(scope="session")
def asset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A convolution and a pixel shuffle as an `.aimodel` folder, its latents and what eager mode makes of them."""
    pytest.importorskip("coreai_torch", reason="needs coreai-torch")
    import torch
    from torch import nn

    from handheld.convert import TARGETS
    from handheld.convert.graph.rewrite import capture
    from handheld.convert.target import Job

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(4, 12, 3, padding=1), shuffle()).eval()
    latents = torch.randn(LATENTS)
    path = tmp_path_factory.mktemp("coreai") / "decoder.aimodel"
    TARGETS["ios27"].lower(Job(capture(model, (latents,)), (latents,), "fp32", path))
    with torch.no_grad():
        return path, latents.numpy(), model(latents).numpy()


def shuffle():
    """A pixel shuffle of each frame; a module, made where torch is imported."""
    from torch import nn
    from torch.nn import functional as F

    class Frames(nn.Module):
        def forward(self, x):
            return F.pixel_shuffle(x.transpose(1, 2), 2).transpose(1, 2)

    return Frames()


@pytest.fixture
def bundle_of(asset, tmp_path: Path) -> Callable[..., Bundle]:
    """`bundle_of(damage)` writes a bundle of the asset after `damage(folder)`, with the hash of what it is then."""

    def make(damage: Callable[[Path], object] = lambda folder: None, method: str = "main") -> Bundle:
        path, latents, frames = asset
        with BundleWriter(tmp_path / "bundle") as writer:
            folder = writer.artifact_dir("ios27") / "decoder.aimodel"
            shutil.copytree(path, folder)
            damage(folder)
            writer.add_artifact(
                name="ios27",
                target="ios27",
                runtime="coreai",
                path="ios27/decoder.aimodel",
                precision="fp32",
                tolerance=Tolerance(1e-4, "fp32 against fp32"),
                methods=[Method(method, (LATENTS,), (FRAMES,))],
            )
            writer.set_golden({"latents": latents}, {"frames": frames})
            writer.describe(
                name="tiny",
                provenance={},
                versions={},
                inputs=[TensorSpec("latents", LATENTS)],
                outputs=[TensorSpec("frames", FRAMES, range=(-1.0, 1.0))],
            )
        return writer.bundle

    return make


@needs_coreai
def test_a_session_computes_what_the_eager_model_does_and_results_outlive_it(bundle_of: Callable) -> None:
    bundle = bundle_of()
    inputs, golden = bundle.golden()
    session = open_session(bundle, "ios27")
    first = session.run(inputs)["frames"]
    session.run({"latents": np.zeros(LATENTS, np.float32)})
    session.close()
    np.testing.assert_allclose(first, golden["frames"], atol=1e-5)
    with pytest.raises(RuntimeFailure, match="is closed"):
        session.run(inputs)


@needs_coreai
@needs_linux
def test_verify_says_that_it_was_neither_the_neural_engine_nor_the_gpu(bundle_of: Callable) -> None:
    (verdict,) = verify(bundle_of())
    assert (verdict.status, verdict.reason) == ("pass", "")
    assert "Core AI, CPU path: neither the Neural Engine nor the GPU" in verdict.runtime_version


@needs_coreai
def test_twenty_processes_in_a_row_give_results_that_count(bundle_of: Callable) -> None:
    """The library may abort when an interpreter ends: each process has answered before, and none is left."""
    bundle = bundle_of()
    inputs, golden = bundle.golden()
    for _ in range(20):
        with open_session(bundle, "ios27") as session:
            np.testing.assert_allclose(session.run(inputs)["frames"], golden["frames"], atol=1e-5)
    assert not [
        child for child in psutil.Process().children(recursive=True) if "coreai_host" in " ".join(child.cmdline())
    ]


@needs_coreai
def test_a_process_that_opens_a_session_and_leaves_it_open_ends_well(bundle_of: Callable) -> None:
    code = """
import sys
from handheld.runtime.bundle import read_bundle
from handheld.runtime.session import open_session
bundle = read_bundle(sys.argv[1])
session = open_session(bundle, "ios27")
print(session.run(bundle.golden()[0])["frames"].shape, "coreai" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, bundle_of().path], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (f"{FRAMES} False\n", "")


def truncate(folder: Path) -> None:
    data = (folder / "main.mlirb").read_bytes()
    (folder / "main.mlirb").write_bytes(data[: len(data) // 2])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "empty": lambda folder: (folder / "main.mlirb").write_bytes(b""),
    "garbage": lambda folder: (folder / "main.mlirb").write_bytes(os.urandom(4096)),
    "a missing program": lambda folder: (folder / "main.mlirb").unlink(),
    "nothing in the folder": lambda folder: [file.unlink() for file in folder.iterdir()] and (folder / "x").touch(),
}


@needs_coreai
@pytest.mark.parametrize("name", list(DAMAGE))
def test_a_damaged_asset_is_refused_with_our_error_and_no_process_dies(bundle_of: Callable, name: str) -> None:
    bundle = bundle_of(DAMAGE[name])
    with pytest.raises(RuntimeFailure, match=r"coreai could not load decoder\.aimodel: it holds no program"):
        open_session(bundle, "ios27")
    (verdict,) = verify(bundle)
    assert verdict.status == "fail"
    assert "it holds no program that Core AI can read" in verdict.reason


@needs_coreai
def test_a_process_that_dies_in_a_run_is_an_error_with_the_signal(
    bundle_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of()
    with open_session(bundle, "ios27") as session:
        session._model._process.kill()
        with pytest.raises(RuntimeFailure, match=r"coreai could not run .*SIGKILL"):
            session.run(bundle.golden()[0])


@needs_coreai
def test_an_asset_of_other_functions_or_tensors_is_refused(bundle_of: Callable, edit_manifest: Callable) -> None:
    bundle = bundle_of(method="shape_16x16x2")
    with pytest.raises(RuntimeFailure, match=r"has the functions main, and not shape_16x16x2"):
        open_session(bundle, "ios27")

    def rename(tree: dict) -> None:
        tree["artifacts"][0]["methods"][0]["name"] = "main"
        tree["inputs"][0]["name"] = "z"

    with pytest.raises(RuntimeFailure, match=r"\['latents'\].*says.*\['z'\]"):
        open_session(edit_manifest(bundle, rename), "ios27")


@needs_coreai
@needs_linux
def test_the_linux_interpreter_is_not_timed(bundle_of: Callable) -> None:
    bundle = bundle_of()
    with pytest.raises(RuntimeFailure, match=r"student is not measured: .*its times say nothing"):
        profile([Subject("student", bundle, bundle.artifacts[0])], repeat=1, rounds=1, warmup=0)


def test_a_machine_that_core_ai_has_no_package_for_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreai.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(coreai.platform, "system", lambda: "Linux")
    monkeypatch.setattr(coreai.platform, "machine", lambda: "aarch64")
    assert "this is Linux on aarch64" in SESSION.unavailable()
    monkeypatch.setattr(coreai.platform, "machine", lambda: "x86_64")
    with pytest.raises(RuntimeMissing, match=re.escape("pip install 'handheld[coreai]'")):
        SESSION.library_version()
