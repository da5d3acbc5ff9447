"""The flash engine's core: kernels against memory bandwidth, and what each technique is worth, in one run.

    python benchmarks/flash_core.py --shape 1b --dtype int8 --out flash_core.json

Kernels: a layer that is wholly resident, dense and at 10 % of the neurons, against the best of a copy and a sum of
large arrays by as many threads. Techniques: random weights in the shape of a 1 B or 3 B model; masks are synthetic,
made to overlap from token to token as a distilled model's do (14.9 % active; a window of 5 tokens holds 47 %, and
5 % are new). Every variant runs the same masks, in turn, token by token; ratios are medians of each token's time
against naive loading in the same round. Half of the feed-forward weights fit the budget.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from handheld.runtime.flash import (
    UNLIMITED,
    FeedForward,
    Pack,
    PackSpec,
    PackWriter,
    Session,
    SessionOptions,
    open_pack,
)
from handheld.runtime.flash.layout import DTYPES

SHAPES = {"1b": (2048, 8192), "3b": (3072, 8192), "tiny": (256, 1024)}
ACTIVE = 0.149


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


def write_pack(path: Path, shape: str, dtype: str, layers: int) -> PackSpec:
    d_model, d_ff = SHAPES[shape]
    spec = PackSpec(layers=layers, d_model=d_model, d_ff=d_ff, activation="silu", dtype=dtype)
    rng = np.random.default_rng(0)

    def weights(*size: int) -> np.ndarray:
        return rng.standard_normal(size, dtype=np.float32) / np.float32(np.sqrt(d_model))

    # Values do not matter to time, so the layers share theirs.
    given = FeedForward(gate=weights(d_ff, d_model), up=weights(d_ff, d_model), down=weights(d_model, d_ff))
    with PackWriter(path, spec) as writer:
        for _ in range(layers):
            writer.add_layer(given)
    return spec


def masks(spec: PackSpec, tokens: int) -> list[list[np.ndarray]]:
    """By token and layer, ids of the active neurons."""
    rng = np.random.default_rng(1)
    count = round(ACTIVE * spec.d_ff)
    # Neurons differ in how often they are active, and tend to stay as they were: weights of the two that give the
    # overlaps measured on a distilled model at windows of 1, 5 and 16 tokens.
    liking = [0.5 * rng.gumbel(size=spec.d_ff) for _ in range(spec.layers)]
    mood = [rng.gumbel(size=spec.d_ff) for _ in range(spec.layers)]
    result = []
    for _ in range(tokens):
        token = []
        for layer in range(spec.layers):
            changed = rng.random(spec.d_ff) < 0.9
            mood[layer][changed] = rng.gumbel(size=int(changed.sum()))
            score = liking[layer] + mood[layer]
            token.append(np.sort(np.argpartition(-score, count)[:count]).astype(np.uint32))
        result.append(token)
    return result


def locality(tokens: list[list[np.ndarray]], window: int, d_ff: int) -> tuple[float, float]:
    """Shares of a layer's neurons: resident in a window, new per token. As the facts they imitate."""
    resident, new = [], []
    for at in range(window, len(tokens)):
        held = set(np.concatenate([tokens[t][0] for t in range(at - window, at)]).tolist())
        resident.append(len(held) / d_ff)
        new.append(len(set(tokens[at][0].tolist()) - held) / d_ff)
    return statistics.mean(resident), statistics.mean(new)


def measure_kernels(pack: Pack, spec: PackSpec, threads: int, rounds: int = 60) -> dict[str, float]:
    """Shares of the memory bandwidth, by bundle bytes over time in arithmetic: the best of interleaved rounds of
    each, as other work on the machine only ever takes away."""
    options = SessionOptions(
        budget_bytes=1 << 40, pinned_neurons=UNLIMITED, compute_resident=False, compute_threads=threads
    )
    session = pack.session(options)
    rng = np.random.default_rng(2)
    x = rng.standard_normal(spec.d_model).astype(np.float32)
    sparse = [rng.choice(spec.d_ff, spec.d_ff // 10, replace=False) for _ in range(spec.layers)]
    bandwidth = Bandwidth(threads)
    best = {"dense": 0.0, "sparse 10 %": 0.0}
    for _ in range(rounds):
        bandwidth.measure()
        for name in best:
            for layer in range(spec.layers):
                before = session.stats()
                if name == "dense":
                    session.ffn(layer, x, "dense")
                else:
                    session.ffn(layer, x, "selected", sparse[layer])
                after = session.stats()
                computed_bytes = (after.neurons_computed - before.neurons_computed) * spec.bundle_bytes
                best[name] = max(best[name], computed_bytes * 1e9 / (after.compute_ns - before.compute_ns))
    return {name: rate / bandwidth.best_bytes_per_s for name, rate in best.items()}


def variants(pack: Pack, spec: PackSpec) -> dict[str, tuple[Session, str]]:
    half = spec.layers * spec.d_ff // 2
    row_bytes = pack.info.bundle_bytes + 20

    def session(rows: int, **fields: Any) -> Session:
        plain: dict[str, Any] = {"window_tokens": 0, "bundling": False, "merging": False, "compute_resident": False}
        options = SessionOptions(budget_bytes=0, **{**plain, **fields})
        floor = pack.floor_bytes(SessionOptions(budget_bytes=0, **{**plain, **fields, "pinned_neurons": 0}))
        return pack.session(SessionOptions(**{**vars(options), "budget_bytes": floor + rows * row_bytes}))

    window = {"window_tokens": 5}
    bundled = {**window, "bundling": True}
    merged = {**bundled, "merging": True}
    return {
        "naive: every weight read": (session(0, bundling=True, merging=True), "dense"),
        "half of the model resident": (
            session(half, bundling=True, merging=True, pinned_neurons=spec.d_ff // 2), "dense"
        ),
        "active neurons only, three reads each": (session(half), "selected"),
        "+ window of 5 tokens": (session(half, **window), "selected"),
        "+ bundling": (session(half, **bundled), "selected"),
        "+ merging": (session(half, **merged), "selected"),
        "+ window as large as the budget": (session(half, **{**merged, "window_tokens": UNLIMITED}), "selected"),
        "+ every resident neuron computed": (
            session(half, **{**merged, "window_tokens": UNLIMITED, "compute_resident": True}), "selected"
        ),
    }  # fmt: skip


def measure_techniques(pack: Pack, spec: PackSpec, tokens: int, warmup: int) -> dict[str, dict[str, float]]:
    sessions = variants(pack, spec)
    plan = masks(spec, tokens + warmup)
    resident, new = locality(plan, 5, spec.d_ff)
    print(f"synthetic masks: {ACTIVE:.1%} active, window of 5: {resident:.1%} resident, {new:.1%} new per token")
    x = np.random.default_rng(3).standard_normal(spec.d_model).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    at_start = {}
    for at, token in enumerate(plan):
        for name, (session, mode) in sessions.items():
            if at == warmup:
                at_start[name] = session.stats()
            started = time.perf_counter()
            for layer in range(spec.layers):
                session.ffn(layer, x, mode, token[layer] if mode == "selected" else None)  # type: ignore[arg-type]
            if at >= warmup:
                times[name].append(time.perf_counter() - started)
    naive = next(iter(sessions))
    result = {}
    for name, (session, _) in sessions.items():
        stats, start = session.stats(), at_start[name]
        total = sum(times[name]) * 1e9
        result[name] = {
            "speed_against_naive": statistics.median(a / b for a, b in zip(times[naive], times[name], strict=True)),
            "read_share_of_naive": 0.0,
            "bytes_read": stats.bytes_read - start.bytes_read,
            "reads": stats.reads - start.reads,
            "share_waiting_for_reads": (stats.wait_ns - start.wait_ns) / total,
            "share_table": (stats.table_ns - start.table_ns) / total,
            "share_compute": (stats.compute_ns - start.compute_ns) / total,
        }
        result[name]["read_share_of_naive"] = result[name]["bytes_read"] / result[naive]["bytes_read"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--dtype", choices=list(DTYPES), default="int8")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where to write the pack; a disk, not a memory file system")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder or Path.cwd()) as folder:
        path = Path(folder) / "bench.flash"
        spec = write_pack(path, arguments.shape, arguments.dtype, arguments.layers)
        pack = open_pack(path)
        print(
            f"{spec.layers} layers, d_model {spec.d_model}, d_ff {spec.d_ff}, {spec.dtype}, {os.cpu_count()} cores"
        )
        if not pack.info.direct_io:
            print("This file system refuses direct reads: the page cache takes part, and the ratios say little.")
        kernels = {threads: measure_kernels(pack, spec, threads) for threads in (1, 2)}
        for threads, shares in kernels.items():
            for name, share in shares.items():
                print(f"kernels, {threads} threads, {name}: {share:.0%} of the memory bandwidth of as many threads")
        techniques = measure_techniques(pack, spec, arguments.tokens, warmup=8)
        print(f"{'':40} {'speed':>7} {'bytes':>7} {'waiting':>8} {'table':>6} {'compute':>8}")
        for name, row in techniques.items():
            print(
                f"{name:40} {row['speed_against_naive']:6.2f}x {row['read_share_of_naive']:7.1%} "
                f"{row['share_waiting_for_reads']:8.0%} {row['share_table']:6.0%} {row['share_compute']:8.0%}"
            )
    if arguments.out:
        report = {
            "arguments": {k: str(v) for k, v in vars(arguments).items()},
            "kernels": kernels,
            "techniques": techniques,
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
