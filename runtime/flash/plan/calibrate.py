"""This machine's storage curve and memory rates."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...errors import RuntimeFailure
from ...host import describe_host
from .device import Device, StorageCurve, StoragePoint

CHUNKS = tuple(1 << shift for shift in range(12, 21))
THREADS = (1, 2, 4, 8, 16, 32)

_F_NOCACHE = 48  # fcntl's, on Apple systems
_MEMORY_BYTES = 256 << 20
_BLOCK_BYTES = 1 << 20  # that the file is written in


def calibrate(
    folder: str | os.PathLike[str],
    *,
    chunks: Sequence[int] = CHUNKS,
    threads: Sequence[int] = THREADS,
    file_bytes: int = 1 << 30,
    seconds_per_point: float = 0.3,
    compute_threads: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Device:
    """Measure random reads of a file in `folder` past the page cache, by chunk size and threads, and memory rates.

    Writes a file of `file_bytes`, rounded up to whole MiB (synced, removed afterwards). Reads are issued from
    Python, at most about 10^5 a second: where storage is faster than that in small chunks, the curve is too low.

    Raises RuntimeFailure where the file system does not read past the page cache, or the file cannot be written.
    """
    file_bytes = max(file_bytes, max(chunks)) + _BLOCK_BYTES - 1 & -_BLOCK_BYTES
    points = []
    source = f"handheld llm calibrate on {describe_host().name}, random reads, direct I/O"
    combinations = [(chunk, count) for count in threads for chunk in chunks]
    with _scratch_file(Path(folder), file_bytes) as path, _direct(path) as descriptor:
        alignment = _alignment(descriptor)
        for done, (chunk, count) in enumerate(combinations):
            progress(done, len(combinations))
            rate = _random_reads(descriptor, file_bytes, chunk, count, seconds_per_point)
            points.append(StoragePoint(chunk, count, rate, source))
    copy_rate, read_rate = _memory_rates(compute_threads)
    return Device(
        name=describe_host().name,
        storage=StorageCurve(tuple(points)),
        read_alignment_bytes=alignment,
        copy_bytes_per_s=copy_rate,
        compute_bytes_per_s=read_rate,
        memory_source=f"best of 5, {_MEMORY_BYTES} bytes a thread: copy on 1, sum on {compute_threads}",
    )


@contextlib.contextmanager
def _scratch_file(folder: Path, size_bytes: int) -> Iterator[Path]:
    block = np.random.default_rng(0).bytes(_BLOCK_BYTES)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".handheld-calibrate-") as file:
            for _ in range(size_bytes // _BLOCK_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            yield Path(file.name)
    except OSError as error:
        raise RuntimeFailure(
            f"{folder} cannot be measured: {error.strerror}. Choose a folder on a disk with "
            f"{size_bytes} bytes free."
        ) from error


@contextlib.contextmanager
def _direct(path: Path) -> Iterator[int]:
    """A descriptor whose reads bypass the page cache."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise RuntimeFailure(
            f"The file system of {path.parent} does not read past the page cache. Choose a folder on a disk."
        ) from error
    try:
        if platform.system() == "Darwin":
            import fcntl

            fcntl.fcntl(descriptor, _F_NOCACHE, 1)
        yield descriptor
    finally:
        os.close(descriptor)


def _random_reads(descriptor: int, file_bytes: int, chunk: int, threads: int, seconds: float) -> float:
    """Bytes per second of `threads` readers, each with one read under way."""
    places = file_bytes // chunk
    until = time.perf_counter() + seconds

    def read(seed: int) -> int:
        pick = random.Random(seed)
        buffer = mmap.mmap(-1, chunk)  # page-aligned, as direct reads need
        count = 0
        # At least one, however late a busy machine starts this thread.
        while not count or time.perf_counter() < until:
            if os.preadv(descriptor, [buffer], pick.randrange(places) * chunk) != chunk:
                raise RuntimeFailure("A read gave less than was asked for. Do not change the folder meanwhile.")
            count += 1
        return count

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        reads = sum(pool.map(read, range(threads)))
    return reads * chunk / (time.perf_counter() - started)


def _alignment(descriptor: int) -> int:
    """Bytes that offsets and sizes of direct reads are multiples of."""
    sector = 512
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as buffer, memoryview(buffer) as view:
            os.preadv(descriptor, [view[:sector]], sector)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return 4096
    return sector


def _memory_rates(threads: int) -> tuple[float, float]:
    """Bytes per second of a copy on one thread, and of reading on several."""
    arrays = [np.ones(_MEMORY_BYTES // 4, np.float32) for _ in range(threads)]
    target = np.empty_like(arrays[0])
    copies, sums = [], []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            started = time.perf_counter()
            np.copyto(target, arrays[0])
            copies.append(time.perf_counter() - started)
            started = time.perf_counter()
            list(pool.map(np.sum, arrays))
            sums.append(time.perf_counter() - started)
    return _MEMORY_BYTES / min(copies), threads * _MEMORY_BYTES / min(sums)
