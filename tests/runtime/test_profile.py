"""Measuring: what is recorded, what survives a death, and that it fits the schema."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from handheld.runtime import host, stats
from handheld.runtime import profile as module
from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.profile import SCOPE, Subject, profile, write_profile

SCHEMA = json.loads(
    (Path(__file__).resolve().parents[2] / "runtime" / "schema" / "profile.schema.json").read_text()
)


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
        assert [len(samples) for samples in measured.latency_ns] == [3, 3]
        everything = [sample for samples in measured.latency_ns for sample in samples]
        assert measured.latency == stats.summarize(everything)
        assert min(everything) > 0
        assert len(measured.load_ns) == len(measured.first_run_ns) == len(measured.peak_rss_bytes) == 2
        assert measured.frames == 2
        assert measured.fps == pytest.approx(2e9 / measured.latency.median_ns)
        assert measured.threads == 1
        assert all(p >= b > 1e6 for p, b in zip(measured.peak_rss_bytes, measured.baseline_rss_bytes))
    teacher, onnx = result.subjects[2], result.subjects[1]
    pairs = [t / o for ts, os_ in zip(teacher.latency_ns, onnx.latency_ns) for t, o in zip(ts, os_)]
    assert teacher.speedup is None
    assert onnx.speedup.reference == "teacher"
    assert onnx.speedup.pairs == pytest.approx(pairs)
    assert onnx.speedup.median_of_pairs == pytest.approx(statistics.median(pairs))

    write_profile(result, tmp_path / "profile.json")
    tree = json.loads((tmp_path / "profile.json").read_text())
    assert schema_faults(tree, "profile") == []
    assert tree["scope"] == SCOPE == "measured on this host; says nothing about a phone"
    assert set(tree["device"].values()) == {None}
    assert [tree["bundles"][s["bundle"]]["name"] for s in tree["subjects"]] == ["tiny"] * 3
    tree["subjects"][0]["fps"] = "fast"
    assert schema_faults(tree, "profile") != []


@pytest.mark.parametrize(
    ("cls", "definition"),
    [
        (module.Settings, "settings"),
        (module.BundleInfo, "bundle"),
        (module.Measurement, "subject"),
        (host.Host, "host"),
        (host.Device, "device"),
        (stats.Summary, "summary"),
        (stats.Speedup, "speedup"),
        (module.Profile, None),
    ],
)
def test_schema_and_dataclasses_have_the_same_fields(cls: type, definition: str | None) -> None:
    schema = SCHEMA["$defs"][definition] if definition else SCHEMA
    own = {field.name for field in dataclasses.fields(cls)} | (set() if definition else {"schema_version"})
    assert set(schema["properties"]) == own == set(schema["required"])
    assert schema["additionalProperties"] is False


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
    assert [len(samples) for samples in victim.latency_ns] == [2]
    assert len(victim.speedup.pairs) == 2
    assert victim.peak_growth_bytes is None
    assert survivor.error is None
    assert [len(samples) for samples in survivor.latency_ns] == [4, 4]
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
    assert (bad.latency, bad.fps, bad.speedup, bad.load_ns, bad.peak_growth_bytes) == (None, None, None, (), None)
    assert good.latency.count == 1
    assert good.speedup is None
    if host.sys.platform != "darwin":
        assert "macOS only" in absent.error
    assert schema_faults(json.loads(result.to_json()), "profile") == []


def test_peak_memory_is_the_workers_own(make_bundle: Callable) -> None:
    """Linux hands `ru_maxrss` of a parent down to its children."""
    ballast = np.ones(600_000_000, np.uint8)
    assert host.rss_bytes() > ballast.nbytes
    result = profile([subject(make_bundle, "onnx")], repeat=1, warmup=0, rounds=1)
    assert result.subjects[0].peak_rss_bytes[0] < ballast.nbytes / 2


def test_peak_memory_sees_what_was_freed_again() -> None:
    host.forget_peak_rss()
    before = host.rss_bytes()
    np.ones(300_000_000, np.uint8)
    assert host.peak_rss_bytes() - before > 250_000_000


def test_clips_of_unequal_size_are_not_compared(make_bundle: Callable, edit_manifest: Callable) -> None:
    teacher, student = subject(make_bundle, "t", "teacher"), subject(make_bundle, "s")

    def enlarge(tree: dict) -> None:
        tree["outputs"][0]["shape"] = [1, 3, 1, 16, 16]
        for artifact in tree["artifacts"]:
            artifact["methods"][0]["outputs"] = [[1, 3, 1, 16, 16]]

    bundle = edit_manifest(student.bundle, enlarge)
    run = module._Run(dataclasses.replace(student, bundle=bundle))
    reference = module._Run(teacher)
    for one in (run, reference):
        one.latency_ns = [{0: 5}]
    assert module._speedup(run, reference) is None
    run.subject = student
    assert module._speedup(run, reference).pairs == (1.0,)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"repeat": 0, "rounds": -1}, r"repeat=0 \(at least 1\), rounds=-1"),
        ({"warmup": -1}, "warmup=-1"),
        ({"threads": 0}, "threads=0"),
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
    assert here.cores_logical == os.cpu_count()
    assert here.ram_bytes == psutil.virtual_memory().total
    assert all(value is None or value for name, value in vars(here).items() if name != "load_average_1min")
