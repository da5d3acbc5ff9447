"""Hashes and sizes of the files and folders of a bundle, and writing a report."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from handheld.files import write_bytes

from .errors import BundleError, RuntimeFailure

_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """SHA-256, in lowercase hex, of a file or of a folder.

    A file hashes as its contents. A folder hashes as the concatenation, over every regular file below it in
    ascending order of its path, of: the path relative to the folder, with `/` between parts, as UTF-8; one
    zero byte; the file's size in bytes as ASCII decimal digits; one zero byte; the file's contents. Paths are
    ordered by their UTF-8 bytes, names are taken as the file system gives them (no Unicode normalisation),
    and folders, times and modes do not count.

    Raises BundleError as `files_below` does.
    """
    digest = hashlib.sha256()
    is_folder = path.is_dir()
    for relative, file in files_below(path):
        if is_folder:
            digest.update(relative.encode() + b"\0" + str(file.stat().st_size).encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes in a file, or the sum over the files below a folder. Raises BundleError as `files_below` does."""
    return sum(file.stat().st_size for _, file in files_below(path))


def files_below(path: Path) -> list[tuple[str, Path]]:
    """The regular files at or below a path, as (path relative to it, path), in ascending order of UTF-8 bytes.

    The relative path of a file given itself is its name. Raises BundleError for a missing path, and for a
    symbolic link or a special file: two machines would not agree on what those hold.
    """
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from error
    if stat.S_ISREG(mode):
        return [(path.name, path)]
    if not stat.S_ISDIR(mode):
        raise BundleError(f"{path} is a symbolic link or a special file; a bundle holds plain files only.")
    found = [file for child in path.iterdir() for _, file in files_below(child)]
    try:
        return sorted(
            ((file.relative_to(path).as_posix(), file) for file in found), key=lambda item: item[0].encode()
        )
    except UnicodeEncodeError as error:
        raise BundleError(f"{path} holds a file whose name is not UTF-8; rename it.") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole. Raises RuntimeFailure where that fails: no such folder, a full disk."""
    write_bytes(path, data, RuntimeFailure)
