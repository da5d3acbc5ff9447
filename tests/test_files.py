"""Writing files and folders whole."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from handheld import files


class WriteError(Exception):
    """What a caller raises."""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files can grow to 4096 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_replaces_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "x.json", b"old", WriteError)
    files.write_text(tmp_path / "x.json", "néw", WriteError)
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == "néw"
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "absent" / "x.json", tmp_path / "x.json" / "y"):
        with pytest.raises(WriteError, match=r"cannot be written: .*Choose a folder"):
            files.write_bytes(path, b"x", WriteError)
    assert names(tmp_path) == ["folder", "x.json"]
    files.write_bytes(tmp_path / "absent" / "x.json", b"x", WriteError, make_folder=True)
    assert names(tmp_path / "absent") == ["x.json"]


def test_an_exception_in_the_block_keeps_the_old_file_and_passes_through(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")

    def write(failure: BaseException) -> None:
        with files.replacing(path, WriteError) as partial:
            partial.write_text("new")
            raise failure

    for failure in (KeyboardInterrupt(), ValueError("x")):
        with pytest.raises(type(failure)):
            write(failure)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.json"]


def test_the_content_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        order.append(f"sync {os.readlink(f'/proc/self/fd/{descriptor}').rpartition('/')[2].split('-')[0]}")
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    files.write_text(tmp_path / "a.txt", "x", WriteError)
    assert order == ["sync .a.partial", "rename", f"sync {tmp_path.name.split('-')[0]}"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.write_bytes(tmp_path / "bytes", b"x", WriteError)
        files.save_tensors(tmp_path / "torch.safetensors", {"a": torch.ones(2)}, WriteError)
        files.save_tensors(tmp_path / "numpy.safetensors", {"a": np.ones(2)}, WriteError)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask}


def test_tensors_need_not_be_contiguous_and_come_with_metadata(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for path, tensor in ((tmp_path / "a", values.T), (tmp_path / "b", torch.from_numpy(values).T)):
        files.save_tensors(path, {"x": tensor}, WriteError, metadata={"from": "here"})
        assert np.array_equal(load_file(path)["x"], values.T)
        assert b'"from":"here"' in path.read_bytes()


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_said_as_such_whoever_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    writes = [
        lambda: files.write_bytes(path, bytes(10_000), WriteError),
        lambda: files.save_tensors(path, {"a": torch.zeros(10_000)}, WriteError),
        lambda: files.save_tensors(path, {"a": np.zeros(10_000)}, WriteError),
    ]
    for write in writes:
        with pytest.raises(WriteError, match=r"safetensors cannot be written: the disk is full, \d+ bytes"):
            write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x.safetensors"]


def test_what_killed_writers_left_is_removed_and_what_live_ones_write_is_not(tmp_path: Path, dead_pid: int) -> None:
    kept = [f".x.partial-{os.getppid()}-01234567.json", f".y.partial-{dead_pid}-01234567.json", ".x.partial-1.json"]
    for name in [*kept, f".x.partial-{dead_pid}-01234567.json"]:
        (tmp_path / name).touch()
    files.write_text(tmp_path / "x.json", "x", WriteError)
    assert names(tmp_path) == sorted([*kept, "x.json"])


def staged(path: Path, overwrite: bool = False) -> files.StagedFolder:
    return files.StagedFolder(
        path, kind="box", is_kind=lambda folder: (folder / "box").exists(), overwrite=overwrite, error=WriteError
    )


def fill(folder: files.StagedFolder, text: str) -> None:
    (folder.open() / "box").write_text(text)
    folder.commit()
    folder.discard()


def test_a_folder_is_replaced_only_when_asked_and_nothing_else_ever(tmp_path: Path) -> None:
    fill(staged(tmp_path / "b"), "old")
    with pytest.raises(WriteError, match="exists"):
        staged(tmp_path / "b")
    fill(staged(tmp_path / "b", overwrite=True), "new")
    assert (tmp_path / "b" / "box").read_text() == "new"
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    for name in ("link", "other", "file"):
        with pytest.raises(WriteError, match="is not a box and is not overwritten"):
            staged(tmp_path / name, overwrite=True)
    assert names(tmp_path) == ["b", "file", "link", "other"]


def test_a_folder_that_cannot_be_put_in_place_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(staged(tmp_path / "b"), "old")
    rename = os.rename

    def fails(source: Path, target: Path) -> None:
        if "partial" in Path(source).name:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    folder = staged(tmp_path / "b", overwrite=True)
    (folder.open() / "box").write_text("new")
    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OSError) as caught:
        folder.commit()
    assert "disk is full" in str(folder.failure(caught.value))
    assert (tmp_path / "b" / "box").read_text() == "old"
    assert names(tmp_path) == ["b"]


def test_a_folder_set_aside_by_a_killed_process_comes_back(tmp_path: Path, dead_pid: int) -> None:
    fill(staged(tmp_path / "b"), "old")
    shutil.move(tmp_path / "b", tmp_path / f".b.replaced-{dead_pid}-01234567")
    (tmp_path / f".b.partial-{dead_pid}-01234567").mkdir()
    staged(tmp_path / "b", overwrite=True)
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b" / "box").read_text() == "old"
