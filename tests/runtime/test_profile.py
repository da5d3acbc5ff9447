"""Measuring: what is recorded, what survives a death, and that it fits the schema."""

from __future__ import annotations

import json
import mmap
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from handheld.runtime import host
from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.profile import Subject, profile
from handheld.runtime.profile_file import read_profile, to_json, write_profile
from handheld.runtime.profile_record import Conditions


def subject(make_bundle: Callable, label: str, role: str = "student", artifact: str = "onnx") -> Subject:
    bundle = make_bundle(artifact, name=label)
    return Subject(label, bundle, bundle.artifact(artifact), role)


def test_a_profile_holds_every_sample_and_fits_the_schema(
    make_bundle: Callable, schema_faults: Callable, tmp_path: Path
) -> None:
    subjects = [
        subject(make_bundle, "pte", artifact="android"),
        subject(make_bundle, "onnx"),
        subject(make_bundle, "teacher", "teacher"),
    ]
    steps: list[tuple[int, int]] = []
    result = profile(
        subjects,
        repeat=3,
        warmup=1,
        rounds=2,
        threads=1,
        on_progress=lambda done, total, label: steps.append((done, total)),
    )
    assert steps == [(i, 30) for i in range(1, 31)]
    assert [s.label for s in result.subjects] == ["pte", "onnx", "teacher"]
    for measured in result.subjects:
        assert measured.error is None
        assert [len(one.latency_ns) for one in measured.rounds] == [3, 3]
        assert min(measured.samples_ns) > 0
        assert len(measured.load_ns) == len(measured.first_run_ns) == 2
        assert measured.units_per_run == 2
        assert measured.output_shapes == ((1, 3, 2, 16, 16),)
        assert measured.threads == 1
        assert measured.passes is True
        assert all(one.peak_bytes >= one.baseline_bytes > 1e6 for one in measured.rounds)
    assert len(result.speedup(result.subjects[1]).pairs) == 6

    write_profile(result, tmp_path / "profile.json")
    tree = json.loads((tmp_path / "profile.json").read_text())
    assert schema_faults(tree, "profile") == []
    assert read_profile(tmp_path / "profile.json") == result
    assert result.scope == "measured on this host; says nothing about a phone"
    assert [tree["bundles"][s["bundle"]]["name"] for s in tree["subjects"]] == ["tiny"] * 3


def test_a_worker_that_dies_keeps_its_samples_and_the_others_go_on(make_bundle: Callable) -> None:
    subjects = [
        subject(make_bundle, "victim"),
        subject(make_bundle, "survivor"),
        subject(make_bundle, "t", "teacher"),
    ]

    def kill_the_first_worker(done: int, total: int, label: str) -> None:
        if done == 9:  # after three loads and two turns
            min(psutil.Process().children(), key=lambda child: child.create_time()).send_signal(signal.SIGKILL)

    result = profile(subjects, repeat=4, warmup=0, rounds=2, threads=1, on_progress=kill_the_first_worker)
    victim, survivor, _ = result.subjects
    assert "died of SIGKILL" in victim.error
    assert [len(one.latency_ns) for one in victim.rounds] == [2]
    assert len(result.speedup(victim).pairs) == 2
    assert victim.rounds[0].after == Conditions()
    assert victim.parity is None
    assert victim.peak_growth_bytes is None
    assert survivor.error is None
    assert [len(one.latency_ns) for one in survivor.rounds] == [4, 4]
    assert psutil.Process().children() == []


def test_an_artefact_that_cannot_be_loaded_is_an_error_of_its_record(
    make_bundle: Callable, schema_faults: Callable
) -> None:
    altered, fine, mac = (
        subject(make_bundle, *args) for args in (("a", "teacher"), ("b",), ("c", "student", "ios"))
    )
    (altered.bundle.path / altered.artifact.path).write_bytes(b"")
    result = profile([altered, fine, mac], repeat=1, warmup=0, rounds=1)
    bad, good, absent = result.subjects
    assert "is truncated: 0 bytes" in bad.error
    assert (bad.latency, bad.rounds, bad.parity, bad.passes) == (None, (), None, None)
    assert good.latency.count == 1
    assert result.speedup(good) is None
    if host.sys.platform != "darwin":
        assert "macOS only" in absent.error
    assert schema_faults(json.loads(to_json(result)), "profile") == []


def test_peak_memory_is_the_workers_own(make_bundle: Callable) -> None:
    """Linux hands `ru_maxrss` of a parent down to its children."""
    ballast = np.ones(600_000_000, np.uint8)
    assert host.rss_bytes() > ballast.nbytes
    result = profile([subject(make_bundle, "onnx")], repeat=1, warmup=0, rounds=1)
    assert result.subjects[0].peak_bytes < ballast.nbytes / 2


def test_peak_memory_sees_what_was_freed_again() -> None:
    host.forget_peak_rss()
    before = host.rss_bytes()
    # Pages of its own: an array may get memory that the process had freed and still holds.
    with mmap.mmap(-1, 300_000_000) as memory:
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1
    assert host.peak_rss_bytes() - before > 250_000_000


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"repeat": 0, "rounds": -1}, r"repeat=0 \(at least 1\), rounds=-1"),
        ({"warmup": -1}, "warmup=-1"),
        ({"threads": 0}, "threads=0"),
        ({"cooldown_seconds": -1.0}, "cooldown_ns=-1000000000"),
    ],
)
def test_counts_that_make_no_sense_are_refused(plain_bundle: Any, counts: dict[str, int], says: str) -> None:
    with pytest.raises(RuntimeFailure, match=says):
        profile([Subject("a", plain_bundle, plain_bundle.artifact("onnx"))], **counts)


def test_subjects_must_be_there_and_have_labels_of_their_own(plain_bundle: Any) -> None:
    one = Subject("a", plain_bundle, plain_bundle.artifact("onnx"))
    with pytest.raises(RuntimeFailure, match="nothing to measure"):
        profile([])
    with pytest.raises(RuntimeFailure, match="Labels used twice: a"):
        profile([one, one])


def test_the_host_is_described_without_invented_figures() -> None:
    here = host.describe_host()
    assert here.platform == "host"
    assert here.cores == os.cpu_count()
    assert here.ram_bytes == psutil.virtual_memory().total
    assert all(value is None or value for value in vars(here).values())
    assert host.conditions().thermal is None
