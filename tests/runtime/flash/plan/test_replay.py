"""Traces, what sessions record, and what policies make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.flash import SessionOptions, open_pack
from handheld.runtime.flash.plan import (
    POLICIES,
    Device,
    ReplayOptions,
    StorageCurve,
    StoragePoint,
    Trace,
    TraceRecorder,
    TraceShape,
    read_trace,
    replay,
)
from handheld.runtime.flash.plan.replay import read_sizes

DEVICE = Device("a test", StorageCurve((StoragePoint(4096, 1, 1e8, "a test"),)), 512, 1e9, 1e9)
SHAPE = TraceShape(layers=1, d_ff=64, bundle_bytes=1024, bundles_per_group=16, group_bytes=16384)
ROW_BYTES = 1024 + 20


def trace_of(*tokens: list[int], shape: TraceShape = SHAPE) -> Trace:
    return Trace(
        shape,
        np.array([[len(token)] for token in tokens], np.uint32),
        np.concatenate([np.array(token, np.uint32) for token in tokens]),
    )


def replayed(trace: Trace, rows: int, **options: Any) -> Any:
    return replay(trace, DEVICE, ReplayOptions(rows * ROW_BYTES, **options), warmup_tokens=0)


def test_trace_is_read_back_as_it_was(tmp_path: Path) -> None:
    trace = trace_of([1, 5], [], [0, 1, 63])
    trace.write(tmp_path / "trace.safetensors")
    read = read_trace(tmp_path / "trace.safetensors")
    assert read.shape == SHAPE
    assert [read.token(t)[0].tolist() for t in range(3)] == [[1, 5], [], [0, 1, 63]]


def test_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    trace = trace_of([1, 5])
    trace.write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(RuntimeFailure, match="is not a trace"):
        read_trace(path)
    path.write_bytes(whole.replace(b'd_ff\\": 64', b'd_ff\\":  3'))
    with pytest.raises(RuntimeFailure, match="a position over the 3 neurons"):
        read_trace(path)
    save_file({"counts": np.zeros((1, 1))}, path)
    with pytest.raises(RuntimeFailure, match="its format is None"):
        read_trace(path)


def test_window_forgets_what_its_tokens_did_not_need() -> None:
    trace = trace_of([1], [2], [1], [3], [4], [1])
    # With a window of two tokens, token 2 finds neuron 1 and token 5 does not.
    assert replayed(trace, 64, window_tokens=2).hit_rate == 1 / 6
    assert replayed(trace, 64, window_tokens=4).hit_rate == 2 / 6
    assert replayed(trace, 64, policy="lru").hit_rate == 2 / 6


def test_least_recent_goes_first_where_rows_are_short() -> None:
    trace = trace_of([1], [2], [1], [3], [1], [2])
    assert replayed(trace, 2, policy="lru").hit_rate == 2 / 6


def test_most_frequent_stay_over_recent_ones() -> None:
    trace = trace_of([1], [1], [1], [2], [3], [1])
    assert replayed(trace, 1, policy="lfu").hit_rate == 3 / 6
    assert replayed(trace, 1, policy="lru").hit_rate == 2 / 6


def test_hot_set_is_the_first_of_the_order() -> None:
    result = replayed(trace_of([0, 1, 5], [1, 2]), 2, policy="hot")
    assert result.hit_rate == 3 / 5
    assert result.resident_share == 2 / 64
    assert result.cost.memory_s == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_holds_more_than_its_rows_and_all_serve_what_is_needed(policy: str) -> None:
    rng = np.random.default_rng(0)
    table = POLICIES[policy](10, 64, 5)
    for _ in range(50):
        held = set(np.flatnonzero(table.resident).tolist())
        needed = np.sort(rng.choice(64, size=rng.integers(0, 20), replace=False))
        missing, kept, evicted = table.step(needed)
        now = set(np.flatnonzero(table.resident).tolist())
        assert set(missing.tolist()) == set(needed.tolist()) - held
        assert len(now) <= 10
        assert (kept, evicted) == (len(now - held), len(held - now))
        assert now <= held | set(needed.tolist())


def test_reads_are_merged_aligned_and_cut() -> None:
    options = ReplayOptions(0, merge_gap_bytes=1024, chunk_bytes=4096)
    # Positions 0 and 2 have one bundle between them, 20 is in the next group.
    assert read_sizes(SHAPE, np.array([0, 2, 20]), options, 512) == [3072, 1024]
    assert read_sizes(SHAPE, np.array([0, 2, 20]), options, 4096) == [4096, 4096]
    assert read_sizes(SHAPE, np.arange(8), options, 512) == [4096, 4096]
    three = ReplayOptions(0, bundling=False)
    assert len(read_sizes(SHAPE, np.array([0, 1]), three, 1)) == 6
    assert read_sizes(SHAPE, np.array([], int), options, 512) == []


def test_cost_is_reads_and_moves_and_arithmetic() -> None:
    result = replayed(trace_of([0, 1]), 64)
    assert result.bytes_read == 2048
    assert result.cost.io_s == pytest.approx(2048 / 1e8)
    assert result.cost.memory_s == pytest.approx(2048 / 1e9)
    assert result.cost.compute_s == pytest.approx(2048 / 1e9)
    assert result.dense_io_s == pytest.approx(64 * 1024 / 1e8)


def test_what_cannot_be_replayed_is_refused() -> None:
    trace = trace_of([1], [2])
    with pytest.raises(RuntimeFailure, match='no policy "fifo": use one of window, lru'):
        replayed(trace, 1, policy="fifo")
    with pytest.raises(RuntimeFailure, match="2 tokens, and the first 8 are warm-up"):
        replay(trace, DEVICE, ReplayOptions(1 << 20))
    fixed = TraceShape(**{**vars(SHAPE), "fixed_bytes": 1000})
    with pytest.raises(RuntimeFailure, match="budget is 10 bytes; this pack holds 1000"):
        replay(trace_of([1], shape=fixed), DEVICE, ReplayOptions(10), warmup_tokens=0)


def test_recorded_trace_is_what_each_token_needed(make_model: Callable[..., Any]) -> None:
    model = make_model(threshold=0.4)
    session = open_pack(model.path).session(SessionOptions(1 << 26, window_tokens=1))
    shape = TraceShape(2, 100, 256, 64, 16384)
    recorder = TraceRecorder(shape, [None, None])
    wanted = []
    for _ in range(5):
        x = model.x()
        for layer in range(2):
            session.ffn(layer, x, "exact")
        wanted.append([model.layers[layer].over_threshold(x, "silu").tolist() for layer in range(2)])
        recorder.end_token(session)
    trace = recorder.trace()
    assert [[needed.tolist() for needed in trace.token(t)] for t in range(5)] == wanted
    assert 0 < trace.counts.mean() < 100


def test_replayed_bytes_are_those_that_the_engine_reads(make_model: Callable[..., Any]) -> None:
    model = make_model(d_ff=512, shuffled=False)
    pack = open_pack(model.path)
    rng = np.random.default_rng(3)
    tokens = [[np.sort(rng.choice(512, 60, replace=False)) for _ in range(2)] for _ in range(12)]
    options = SessionOptions(1 << 26, window_tokens=3, compute_resident=False)
    session = pack.session(options)
    for token in tokens:
        for layer in range(2):
            session.ffn(layer, model.x(), "selected", token[layer])
    stats = session.stats()

    manifest = json.loads((model.path / "manifest.json").read_text())["groups"]
    shape = TraceShape(
        2, 512, manifest["bundle_stride"], manifest["bundles_per_group"], manifest["group_bytes"]
    )  # fmt: skip
    flat = np.concatenate([layer for token in tokens for layer in token]).astype(np.uint32)
    trace = Trace(shape, np.full((12, 2), 60, np.uint32), flat)
    alignment = pack.info.read_alignment_bytes
    device = Device("a test", DEVICE.storage, alignment)
    result = replay(trace, device, ReplayOptions(1 << 26, window_tokens=3), warmup_tokens=0)
    assert result.hit_rate == pytest.approx(stats.cache_hits / stats.neurons_selected)
    assert result.bytes_read * 12 == pytest.approx(stats.bytes_read, rel=0.05)
    assert result.reads * 12 == pytest.approx(stats.reads, rel=0.05)
