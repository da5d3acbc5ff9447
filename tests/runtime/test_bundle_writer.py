"""Writing bundles: whole or not at all, whatever happens."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handheld.runtime.bundle import Bundle, BundleWriter, Refusal, RewriteRecord, read_bundle
from handheld.runtime.errors import BundleError

LATENTS = np.zeros((1, 4, 2, 8, 8), np.float32)
FRAMES = np.zeros((1, 3, 2, 16, 16), np.float32)


def write(target: Path, fill: Callable, then: Callable[[BundleWriter], Any] = id, **options: Any) -> BundleWriter:
    """Write a bundle with one model; `then` runs as the last thing inside the `with`."""
    with BundleWriter(target, **options) as writer:
        fill(writer, {"onnx": b"model"}, LATENTS, FRAMES)
        then(writer)
    return writer


def raiser(error: BaseException) -> Callable[[BundleWriter], None]:
    def then(writer: BundleWriter) -> None:
        raise error

    return then


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_nothing_stands_at_the_target_before_the_end(tmp_path: Path, fill: Callable) -> None:
    seen = []
    writer = write(tmp_path / "b", fill, lambda _: seen.extend(names(tmp_path)))
    assert [name[:11] for name in seen] == [".b.partial-"]
    assert names(tmp_path) == ["b"]
    assert names(tmp_path / "b") == ["golden.safetensors", "manifest.json", "onnx"]
    assert read_bundle(tmp_path / "b") == writer.bundle


def test_what_the_converter_says_is_in_the_manifest(
    tmp_path: Path, fill: Callable, schema_faults: Callable
) -> None:
    said = {
        "rewrites": [RewriteRecord("rank4_conv", 7, (Refusal("conv3d_1", "", "groups"),))],
        "delegation": {"delegates": 1, "nodes_in": 40, "nodes_out": 0},
        "lowering_seconds": 1.5,
        "settings": {"opset": 18},
        "input_dtype": "float16",
    }
    with BundleWriter(tmp_path / "b") as writer:
        fill(writer, {"onnx": b"model"}, LATENTS, FRAMES, **said)
    artifact = read_bundle(tmp_path / "b").artifact("onnx")
    assert artifact.rewrites == tuple(said["rewrites"])
    assert {key: getattr(artifact, key) for key in said if key != "rewrites"} == {
        key: value for key, value in said.items() if key != "rewrites"
    }
    assert schema_faults(json.loads((tmp_path / "b" / "manifest.json").read_text()), "manifest") == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, fill: Callable, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write(tmp_path / "b", fill, raiser(error()))
    assert names(tmp_path) == []


def test_an_existing_target_is_refused_before_any_work(plain_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="exists"):
        BundleWriter(plain_bundle.path)
    assert read_bundle(plain_bundle.path) == plain_bundle


def test_overwriting_replaces_the_old_bundle_only_at_the_end(plain_bundle: Bundle, fill: Callable) -> None:
    parent = plain_bundle.path.parent
    before = names(parent)
    with pytest.raises(KeyboardInterrupt):
        write(plain_bundle.path, fill, raiser(KeyboardInterrupt()), overwrite=True)
    assert read_bundle(plain_bundle.path) == plain_bundle
    inside = []
    write(plain_bundle.path, fill, lambda _: inside.append(read_bundle(plain_bundle.path)), overwrite=True)
    assert inside == [plain_bundle]
    assert (plain_bundle.path / "onnx" / "decoder.onnx").read_bytes() == b"model"
    assert not (plain_bundle.path / "ios").exists()
    assert names(parent) == before


def test_a_folder_that_is_no_bundle_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(BundleError, match="not a bundle and is not overwritten"):
        BundleWriter(tmp_path / "thesis", overwrite=True)
    assert names(tmp_path / "thesis") == ["chapter1.tex"]


def test_a_parent_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "b", tmp_path / "file" / "deeper" / "b"):
        with pytest.raises(BundleError, match="cannot be written"):
            BundleWriter(target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_without_permission_is_refused_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BundleError, match="Permission denied"):
        BundleWriter(tmp_path / "b")


CHILD = """
import sys, time
from pathlib import Path
from handheld.runtime.bundle import BundleWriter
with BundleWriter(sys.argv[1]) as writer:
    (writer.artifact_dir("onnx") / "decoder.onnx").write_bytes(b"half a mod")
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_killed_export_leaves_nothing_that_looks_whole_and_the_next_one_clears_it(
    tmp_path: Path, fill: Callable
) -> None:
    target = tmp_path / "b"
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(target)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"written\n"
    (partial,) = names(tmp_path)
    BundleWriter(target)
    assert names(tmp_path) == [partial], "a live writer's folder was taken away"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists()
    assert partial.startswith(f".b.partial-{process.pid}-")
    with pytest.raises(BundleError, match="is not a bundle"):
        read_bundle(tmp_path / partial)
    write(target, fill)
    assert names(tmp_path) == ["b"]


def test_folders_of_other_names_are_not_cleared(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [f".bb.partial-{dead.pid}-01234567", f".b.partial-{dead.pid}-xyz", f"b.partial-{dead.pid}-01234567"]
    for name in [*kept, f".b.partial-{dead.pid}-01234567"]:
        (tmp_path / name).mkdir()
    BundleWriter(tmp_path / "b")
    assert names(tmp_path) == sorted(kept)


def test_a_bundle_set_aside_by_a_killed_overwrite_comes_back(plain_bundle: Bundle) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    plain_bundle.path.rename(plain_bundle.path.with_name(f".plain.replaced-{dead.pid}-01234567"))
    BundleWriter(plain_bundle.path, overwrite=True)
    assert read_bundle(plain_bundle.path) == plain_bundle


def test_a_full_disk_is_said_as_such_and_leaves_nothing(tmp_path: Path, fill: Callable) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which is absent")
    with pytest.raises(BundleError, match=r"disk is full.* than the 5 bytes"):
        write(tmp_path / "b", fill, lambda _: Path("/dev/full").write_bytes(b"0" * 100_000))
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_at_the_end_is_said_as_such_too(
    tmp_path: Path, fill: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("handheld.files.sync", full)
    with pytest.raises(BundleError, match="disk is full"):
        write(tmp_path / "b", fill)
    assert names(tmp_path) == []


def missing_model(writer: BundleWriter) -> None:
    (writer.artifact_dir("onnx") / "decoder.onnx").unlink()


def stray_file(writer: BundleWriter) -> None:
    (writer.artifact_dir("onnx") / "decoder.onnx.data").write_bytes(b"external weights")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (missing_model, r"onnx/decoder\.onnx was registered but not written"),
        (stray_file, r"belong to no artefact: onnx/decoder\.onnx\.data"),
        (lambda w: w.set_golden({"latents": LATENTS}, {}), r"output\.frames is missing"),
        (lambda w: w.set_golden({"latents": LATENTS, "x": LATENTS}, {"frames": FRAMES}), r"input\.x is in no spec"),
        (lambda w: w.set_golden({"latents": LATENTS}, {"frames": FRAMES * np.nan}), "NaN or infinity"),
        (
            lambda w: w.set_golden({"latents": LATENTS[:, :3]}, {"frames": FRAMES}),
            r"\(1, 3, 2, 8, 8\), the spec says",
        ),
        (lambda w: w.artifact_dir("../x"), "cannot name a folder"),
    ],
)
def test_an_incomplete_bundle_is_not_written(
    tmp_path: Path, fill: Callable, spoil: Callable[[BundleWriter], Any], says: str
) -> None:
    with pytest.raises(BundleError, match=says):
        write(tmp_path / "b", fill, spoil)
    assert names(tmp_path) == []


def test_a_bundle_that_was_not_described_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not complete"), BundleWriter(tmp_path / "b"):
        pass
    assert names(tmp_path) == []


def test_provenance_that_json_does_not_have_is_refused(tmp_path: Path, fill: Callable) -> None:
    for value in (Path("x"), float("nan")):
        said = {"name": "x", "provenance": {"a": value}, "versions": {}, "inputs": [], "outputs": []}
        with pytest.raises(BundleError, match="JSON does not have"):
            write(tmp_path / "b", fill, lambda writer, said=said: writer.describe(**said))
    assert names(tmp_path) == []
