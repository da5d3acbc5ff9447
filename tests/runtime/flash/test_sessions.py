"""What a session keeps, counts and refuses: the window, the budget, prefetching, threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from handheld.runtime.flash import UNLIMITED, FlashError, SessionOptions, open_pack

from .conftest import Model
from .test_results import TOLERANCE, open_session


def tokens(model: Model, count: int = 12, active: int = 20) -> list[np.ndarray]:
    return [model.neurons(active) for _ in range(count)]


@pytest.mark.parametrize("window", [1, 2, 5])
def test_what_the_last_tokens_selected_is_resident(model: Model, window: int) -> None:
    session = open_session(model, window_tokens=window)
    chosen = tokens(model)
    for at, neurons in enumerate(chosen):
        before = set(session.resident(0).tolist())
        hits, loaded = session.stats().cache_hits, session.stats().neurons_loaded
        session.ffn(0, model.x(), "selected", neurons)
        recent = chosen[max(0, at + 1 - window) : at + 1]
        assert set(session.resident(0).tolist()) == set(np.concatenate(recent).tolist())
        assert session.stats().cache_hits - hits == len(before & set(neurons.tolist()))
        assert session.stats().neurons_loaded - loaded == len(set(neurons.tolist()) - before)


def test_a_window_of_no_tokens_reads_everything_again(model: Model) -> None:
    session = open_session(model, window_tokens=0)
    for _ in range(3):
        session.ffn(0, model.x(), "selected", np.arange(10))
    assert session.stats().neurons_loaded == 30
    assert session.stats().cache_hits == 0


def test_under_a_tight_budget_the_oldest_go_first(model: Model) -> None:
    session = open_session(model, 2 * 25, window_tokens=UNLIMITED)
    for first in (0, 10, 20):
        session.ffn(0, model.x(), "selected", np.arange(first, first + 10))
    held = set(session.resident(0).tolist())
    assert len(held) == 25
    assert held >= set(range(10, 30))
    assert session.stats().neurons_evicted == 5


def test_pinned_neurons_are_the_first_of_the_order_and_stay(make_model: Callable[..., Model]) -> None:
    model = make_model(shuffled=False)
    session = open_session(model, pinned_neurons=6, window_tokens=1)
    assert session.stats().reads == 0
    for neurons in tokens(model):
        session.ffn(1, model.x(), "selected", neurons)
        assert set(range(6)) <= set(session.resident(1).tolist())
    session.reset()
    assert session.resident(1).tolist() == list(range(6))
    assert session.stats().neurons_loaded == 0


def test_exact_mode_keeps_what_was_active_for_the_next_token(make_model: Callable[..., Model]) -> None:
    model = make_model(threshold=0.05)
    session = open_session(model)
    x = model.x()
    session.ffn(0, x, "exact")
    active = model.layers[0].over_threshold(x, "silu")
    assert 0 < len(active) < model.spec.d_ff
    assert set(session.resident(0).tolist()) == set(active.tolist())


def test_merging_and_bundling_save_reads_and_are_counted(make_model: Callable[..., Model]) -> None:
    model = make_model(d_model=512, d_ff=200, shuffled=False)
    neurons = np.arange(0, 200, 2)

    def reads(**options: object) -> tuple[int, int]:
        session = open_session(model, **options)
        session.ffn(0, model.x(), "selected", neurons)
        return session.stats().reads, session.stats().bytes_read

    whole, parts, merged = reads(merging=False), reads(merging=False, bundling=False), reads()
    assert whole[0] == 100
    assert parts[0] == 300
    assert merged[0] < 20
    assert merged[1] > 100 * model.spec.bundle_bytes


def test_time_with_reads_under_way_counts_overlapping_reads_once(model: Model) -> None:
    for readers in (1, 8):
        session = open_session(model, reader_threads=readers, merging=False)
        session.ffn(0, model.x(), "dense")
        stats = session.stats()
        # One at a time there is a gap between reads, which is neither; several overlap.
        assert stats.read_ns / readers <= stats.busy_ns <= stats.read_ns
        session.reset()
        assert session.stats().busy_ns == 0


def test_a_prefetch_takes_the_reads_out_of_the_call(model: Model) -> None:
    session = open_session(model)
    neurons = model.neurons(20)
    session.prefetch(1, neurons=neurons)
    assert set(session.resident(1).tolist()) == set(neurons.tolist())
    x = model.x()
    reads = session.stats().reads
    np.testing.assert_allclose(session.ffn(1, x, "selected", neurons), model.output(1, x, neurons), **TOLERANCE)
    assert session.stats().reads == reads
    assert session.stats().prefetched == 20


@pytest.mark.parametrize("rows", [0, 10, 51])
def test_the_budget_is_never_exceeded(model: Model, rows: int) -> None:
    session = open_session(model, rows, window_tokens=UNLIMITED)
    for mode in ("selected", "exact", "dense"):
        for neurons in tokens(model):
            session.ffn(0, model.x(), mode, neurons if mode == "selected" else None)
            stats = session.stats()
            assert stats.held_bytes <= stats.held_peak_bytes <= stats.budget_bytes
    assert session.stats().table_rows == rows
    assert len(session.resident(0)) <= (rows + 1) // 2


def test_a_budget_below_the_floor_is_refused_with_the_floor(model: Model) -> None:
    pack = open_pack(model.path)
    options = {"pinned_neurons": 10, "reader_threads": 2}
    floor = pack.floor_bytes(SessionOptions(budget_bytes=0, **options))
    with pytest.raises(FlashError, match=str(floor)) as caught:
        pack.session(SessionOptions(budget_bytes=floor - 1, **options))
    assert caught.value.status == "HH_FLASH_BUDGET"
    assert pack.session(SessionOptions(budget_bytes=floor, **options)).stats().held_bytes == floor


def test_memory_of_the_process_stays_within_the_budget(make_model: Callable[..., Model]) -> None:
    """In a process of its own, after a session has touched all that it may hold."""
    model = make_model(d_model=1024, d_ff=3000, layers=2)
    budget = 12 << 20
    program = f"""
import numpy as np, psutil
from handheld.runtime.flash import SessionOptions, open_pack
pack = open_pack({str(model.path)!r})
x = np.ones(1024, np.float32)
process = psutil.Process()
warm = pack.session(SessionOptions(budget_bytes={budget}, reader_threads=4))
warm.ffn(0, x, "dense")
del warm
rng = np.random.default_rng(0)
before = process.memory_info().rss
session = pack.session(SessionOptions(budget_bytes={budget}, reader_threads=4, window_tokens=50))
for _ in range(20):
    for layer in range(2):
        session.ffn(layer, x, "selected", rng.choice(3000, 900, replace=False))
        session.ffn(layer, x, "dense")
held = session.stats().held_bytes
assert held > 0.9 * {budget}, held
print(process.memory_info().rss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The interpreter and the allocator take some pages of their own.
    assert int(done.stdout) < budget + (2 << 20)
    assert model.path.joinpath("neurons.bin").stat().st_size > budget


def test_a_file_that_shrinks_while_open_is_an_error(model: Model, tmp_path: Path) -> None:
    path = Path(shutil.copytree(model.path, tmp_path / "copy.flash"))
    session = open_pack(path).session(SessionOptions(budget_bytes=1 << 26, int8_hidden=False))
    x = model.x()
    session.ffn(0, x, "selected", np.arange(10))
    os.truncate(path / "neurons.bin", 16384)
    with pytest.raises(FlashError, match="shorter") as caught:
        session.ffn(0, x, "selected", np.arange(10, 20))
    assert caught.value.status == "HH_FLASH_IO"
    again = session.ffn(0, x, "selected", np.arange(10))
    np.testing.assert_allclose(again, model.output(0, x, np.arange(10)), **TOLERANCE)


def test_sessions_on_one_pack_run_at_the_same_time(make_model: Callable[..., Model]) -> None:
    model = make_model(d_ff=400)
    pack = open_pack(model.path)
    floor = pack.floor_bytes(SessionOptions(budget_bytes=0, reader_threads=3))
    inputs = [(model.x(), model.neurons(60)) for _ in range(15)]

    def run(rows: int) -> None:
        options = SessionOptions(
            budget_bytes=floor + rows * 600, reader_threads=3, compute_resident=False, int8_hidden=False
        )
        session = pack.session(options)
        for x, neurons in inputs:
            for layer in range(2):
                y = session.ffn(layer, x, "selected", neurons)
                np.testing.assert_allclose(y, model.output(layer, x, neurons), **TOLERANCE)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, [0, 100, 600]))


def test_cancelling_stops_a_running_thread_and_resume_goes_on(model: Model) -> None:
    session = open_session(model, 0)
    x = model.x()
    caught: list[FlashError] = []

    def run() -> None:
        try:
            while True:
                session.ffn(0, x, "dense")
        except FlashError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    session.cancel()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert caught[0].status == "HH_FLASH_CANCELLED"
    session.resume()
    np.testing.assert_allclose(session.ffn(0, x, "dense"), model.output(0, x), **TOLERANCE)


def test_closed_sessions_leave_no_thread_and_no_descriptor(model: Model) -> None:
    process = psutil.Process()
    open_session(model).ffn(0, model.x(), "dense")
    threads, descriptors = process.num_threads(), process.num_fds()
    for _ in range(5):
        open_session(model).prefetch(0, neurons=model.neurons(50))
    assert process.num_threads() == threads
    assert process.num_fds() == descriptors


def test_bad_calls_say_what_is_wrong(model: Model) -> None:
    session = open_session(model)
    x = model.x()
    with pytest.raises(ValueError, match="d_model is 64"):
        session.ffn(0, x[:5], "dense")
    with pytest.raises(ValueError, match="dense, exact or selected"):
        session.ffn(0, x, "sparse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not negative"):
        session.ffn(0, x, "selected", [-1])
    with pytest.raises(FlashError, match="no layer 2"):
        session.ffn(2, x, "dense")
    with pytest.raises(FlashError, match="no neuron 100"):
        session.ffn(0, x, "selected", [100])
    with pytest.raises(FlashError, match="no selector"):
        session.ffn(0, x, "selected")
    with pytest.raises(FlashError, match="list of neurons"):
        session.ffn(0, x, "dense", [1])
    with pytest.raises(ValueError, match="use one of auto"):
        open_session(model, kernels="sse")
