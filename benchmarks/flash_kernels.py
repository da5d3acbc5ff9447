"""The engine's feed-forward kernels against the memory bandwidth of as many threads."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from flash_shapes import SHAPES, write_pack

from handheld.runtime.flash import UNLIMITED, SessionOptions, open_pack

ALL, TENTH = "dense", "sparse 10 %"


class Bandwidth:
    """The best of copying (read and written bytes counted) and summing large integer arrays, one per thread."""

    def __init__(self, threads: int, size_bytes: int = 1 << 27) -> None:
        self._arrays = [np.ones(size_bytes // 8 // threads, np.uint64) for _ in range(threads)]
        self._copies = [np.empty_like(array) for array in self._arrays]
        self._pool = ThreadPoolExecutor(threads)
        self._size_bytes = size_bytes
        self.best_bytes_per_s = 0.0

    def measure(self) -> None:
        started = time.perf_counter()
        list(self._pool.map(np.copyto, self._copies, self._arrays))
        copied = time.perf_counter()
        list(self._pool.map(np.sum, self._arrays))
        summed = time.perf_counter()
        best = max(2 * self._size_bytes / (copied - started), self._size_bytes / (summed - copied))
        self.best_bytes_per_s = max(self.best_bytes_per_s, best)


def measure(workdir: Path, dtype: str, threads: int, rounds: int) -> dict[str, float]:
    """Bytes per second of bundles over time in arithmetic, and the shares of the bandwidth that they are: the best
    of interleaved rounds of each, as other work on the machine only ever takes away."""
    shape = replace(SHAPES["1b"], layers=4, vocab=512)
    path = workdir / f"kernels-{dtype}.flash"
    if not path.exists():
        write_pack(path, shape, dtype)
    options = SessionOptions(
        budget_bytes=1 << 40, pinned_neurons=UNLIMITED, compute_resident=False, compute_threads=threads
    )
    pack = open_pack(path)
    session = pack.session(options)
    rng = np.random.default_rng(2)
    x = rng.standard_normal(shape.d_model).astype(np.float32)
    sparse = [rng.choice(shape.d_ff, shape.d_ff // 10, replace=False) for _ in range(shape.layers)]
    bandwidth = Bandwidth(threads)
    best = {ALL: 0.0, TENTH: 0.0}
    for _ in range(rounds):
        bandwidth.measure()
        for name in best:
            for layer in range(shape.layers):
                before = session.stats()
                if name == ALL:
                    session.ffn(layer, x, "dense")
                else:
                    session.ffn(layer, x, "selected", sparse[layer])
                after = session.stats()
                computed_bytes = (after.neurons_computed - before.neurons_computed) * pack.info.bundle_bytes
                best[name] = max(best[name], computed_bytes * 1e9 / (after.compute_ns - before.compute_ns))
    shares = {f"{name}, share": rate / bandwidth.best_bytes_per_s for name, rate in best.items()}
    return {"memory": bandwidth.best_bytes_per_s, **best, **shares}
