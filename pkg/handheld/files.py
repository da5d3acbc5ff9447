"""Writing files and folders whole: a reader finds the old one or the new one, never a half.

Every package writes through this module, which imports none of ours. A caller passes the class of its own errors.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MakeError = Callable[[str], Exception]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path, error: MakeError, *, make_folder: bool = False) -> Iterator[Path]:
    """Write a file under a temporary name; it takes the place of `path` when the block ends without an exception.

    The temporary file exists, is empty, lies beside `path` and has its suffix. At the end its contents are flushed
    to the disk, and it gets the permissions of a file that `open` makes, whatever the library that wrote it gave.
    What a killed process left of an earlier write to `path` is removed.

    Args:
        error: makes the exception for a failed write of its message, such as `RuntimeFailure`.
        make_folder: make the folder of `path` where it is missing; else that is an error.

    Raises `error(message)` for an OSError and a SafetensorError of the block and of the writing, a full disk among
    them. Any other exception of the block passes through, and `path` is as it was.
    """
    partial = path.with_name(f".{path.stem}.partial-{_token()}{path.suffix}")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        with partial.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield partial
        partial.chmod(mode & 0o777)
        sync_entry(partial)
        os.replace(partial, path)
        sync_entry(path.parent)
    except (OSError, SafetensorError) as failure:
        with suppress(OSError):
            partial.unlink()  # first: what is free is said without it
        raise error(not_written(path, failure)) from failure
    finally:
        with suppress(OSError):
            partial.unlink()


def write_bytes(path: Path, data: bytes, error: MakeError, *, make_folder: bool = False) -> None:
    """Write a file whole; see `replacing`."""
    with replacing(path, error, make_folder=make_folder) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str, error: MakeError, *, make_folder: bool = False) -> None:
    """Write a UTF-8 file whole; see `replacing`."""
    write_bytes(path, text.encode(), error, make_folder=make_folder)


def save_tensors(
    path: Path,
    tensors: Mapping[str, Any],
    error: MakeError,
    *,
    metadata: dict[str, str] | None = None,
    make_folder: bool = False,
) -> None:
    """Write torch tensors, or numpy arrays, as one safetensors file, whole; see `replacing`."""
    import numpy as np

    with replacing(path, error, make_folder=make_folder) as partial:
        if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
            from safetensors.numpy import save_file as save_arrays

            save_arrays({name: np.ascontiguousarray(array) for name, array in tensors.items()}, partial, metadata)
        else:
            from safetensors.torch import save_file

            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)


class StagedFolder:
    """A folder that is filled under a hidden name beside its target, and renamed to it when it is whole.

    Attributes:
        target: where it will be, absolute.
        partial: where it is filled, once `open` was called.

    Args:
        kind: what such a folder is, for messages: "bundle".
        is_kind: whether a folder may be replaced by this one: it is of the same kind.
        overwrite: whether a folder at the target is replaced, which happens at the very end.
        error: makes the exception of its message.

    Raises `error(message)`, before any work, for a target that exists or a folder around it that cannot be written.
    What a killed process left of the same folder is removed, and a folder that it was about to replace comes back.
    """

    partial: Path

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        kind: str,
        is_kind: Callable[[Path], bool],
        overwrite: bool,
        error: MakeError,
    ) -> None:
        self.target = Path(os.path.abspath(path))
        self._kind, self._is_kind, self._overwrite, self._error = kind, is_kind, overwrite, error
        if not self.target.name:
            raise error(f"{path} cannot be a {kind}: give the name of a folder to make.")
        parent = self.target.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if not os.access(parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._remove_leftovers()
        except OSError as failure:
            raise self._not_writable(failure) from failure
        self._refuse_to_replace()

    def open(self) -> Path:
        """Make the hidden folder."""
        self.partial = self._beside("partial")
        try:
            self.partial.mkdir()
        except OSError as failure:
            raise self._not_writable(failure) from failure
        return self.partial

    def commit(self) -> None:
        """Flush the folder to the disk and put it in place. Raises OSError where that fails: see `failure`."""
        sync(self.partial)
        self._refuse_to_replace()
        aside = None
        if self.target.exists():
            aside = self._beside("replaced")
            os.rename(self.target, aside)
        try:
            os.rename(self.partial, self.target)
        except OSError:
            if aside:
                os.rename(aside, self.target)
            raise
        sync_entry(self.target.parent)
        if aside:
            shutil.rmtree(aside, ignore_errors=True)

    def discard(self) -> None:
        """Remove the hidden folder, if it is there."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def failure(self, error: OSError) -> Exception:
        """What to raise for an OSError while the folder was filled or put in place. Removes the hidden folder."""
        written = sum(file.lstat().st_size for file in self.partial.rglob("*") if file.is_file())
        self.discard()
        if not is_full(error):
            return self._error(f"{self.target} cannot be written: {error}.")
        free = shutil.disk_usage(self.target.parent).free
        return self._error(
            f"The disk is full: {self.target} needs more than the {written} bytes that were written so far, and "
            f"{free} bytes are free now that they are removed. Free some space or choose another folder."
        )

    def _refuse_to_replace(self) -> None:
        if not os.path.lexists(self.target):
            return
        if not self._overwrite:
            raise self._error(f"{self.target} exists. Choose another name, or pass overwrite (--overwrite).")
        if self.target.is_symlink() or not self.target.is_dir() or not self._is_kind(self.target):
            raise self._error(f"{self.target} is not a {self._kind} and is not overwritten. Choose another name.")

    def _beside(self, word: str) -> Path:
        return self.target.with_name(f".{self.target.name}.{word}-{_token()}")

    def _remove_leftovers(self) -> None:
        name = re.escape(f".{self.target.name}.")
        pattern = re.compile(name + r"(?P<word>partial|replaced)-(?P<pid>\d+)-[0-9a-f]{8}")
        for entry, match in _of_dead_processes(self.target.parent, pattern):
            if match["word"] == "replaced" and not os.path.lexists(self.target):
                os.rename(entry, self.target)
            else:
                shutil.rmtree(entry, ignore_errors=True)

    def _not_writable(self, failure: OSError) -> Exception:
        return self._error(
            f"{self.target.parent} cannot be written: {failure.strerror}. "
            "Choose another folder or change its permissions."
        )


def not_written(path: Path, failure: OSError | SafetensorError) -> str:
    """What to say of a file that could not be written, and what to do."""
    if is_full(failure):
        try:
            room = f", {shutil.disk_usage(path.parent).free} bytes are free"
        except OSError:
            room = ""
        return f"{path} cannot be written: the disk is full{room}. Free some space or choose another folder."
    reason = getattr(failure, "strerror", None) or str(failure).rstrip(".")
    return f"{path} cannot be written: {reason}. Choose a folder that exists and is writable."


def is_full(failure: OSError | SafetensorError) -> bool:
    """Whether a write failed for want of space: a full disk, a quota or a limit on the size of a file."""
    if isinstance(failure, OSError):
        return failure.errno in _FULL
    # safetensors says it in words: `I/O error: No space left on device (os error 28)`.
    return any(f"(os error {number})" in str(failure) for number in _FULL)


def sync(path: Path) -> None:
    """Flush a file, or a folder with all that is below it, to the disk."""
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
    sync_entry(path)


def sync_entry(path: Path) -> None:
    """Flush one file's contents, or one folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _token() -> str:
    """The writing process and a random number, so that several writers of one path stay apart."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def _remove_leftovers(path: Path) -> None:
    stem, suffix = re.escape(f".{path.stem}."), re.escape(path.suffix)
    pattern = re.compile(rf"{stem}partial-(?P<pid>\d+)-[0-9a-f]{{8}}{suffix}")
    for entry, _ in _of_dead_processes(path.parent, pattern):
        with suppress(OSError):
            entry.unlink()


def _of_dead_processes(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    """Entries of a folder whose whole name matches, where the process of the group `pid` is gone."""
    import psutil

    for entry in list(folder.iterdir()):
        match = pattern.fullmatch(entry.name)
        if match and not psutil.pid_exists(int(match["pid"])):
            yield entry, match
