"""Measuring artefacts on this host, side by side.

Every subject runs in a process of its own. All processes of a round are alive together and are asked for one
run at a time, in turn, so that drift of the machine hits all of them alike and ratios hold; who begins changes
from turn to turn. Each round starts new processes, so load time, first run and memory have one value a round.
`schema/profile.schema.json` describes the JSON.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from . import files, stats
from .bundle import Bundle
from .errors import RuntimeFailure
from .host import Device, Host, describe_host
from .manifest import Artifact
from .process import Worker

SCHEMA_VERSION = 1
SCOPE = "measured on this host; says nothing about a phone"

# Pool threads may go on spinning for a while after a run; they must not burn the CPU of the next subject's run.
_SETTLE_SECONDS = 0.02

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Subject:
    """One artefact to measure. Ratios compare each subject with the first teacher."""

    label: str
    bundle: Bundle
    artifact: Artifact
    role: Literal["student", "teacher"] = "student"


@dataclass(frozen=True)
class Settings:
    """How it was measured.

    Attributes:
        repeat: timed runs of each subject a round.
        warmup: runs before them that are not timed, after the first run.
        rounds: how often all is done, each time in new processes.
        threads: CPU threads asked of each runtime; None is the runtime's own choice.
    """

    repeat: int
    warmup: int
    rounds: int
    threads: int | None


@dataclass(frozen=True)
class BundleInfo:
    """Where a measured model came from, copied from its manifest."""

    name: str
    created_utc: str
    provenance: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True)
class Measurement:
    """What was measured of one subject. None and empty are unknown, never zero.

    Attributes:
        bundle: index into `Profile.bundles`.
        threads: what the runtime used, where it says.
        frames: frames that one run makes (batch times time).
        load_ns: artefact to ready session, per round; its file was read just before (warm file cache) and the
            runtime was imported already.
        first_run_ns: the first run after loading, per round.
        latency_ns: every timed run, a tuple per round.
        baseline_rss_bytes: resident memory with runtime and golden tensors, before loading, per round.
        peak_rss_bytes: highest resident memory from then to the end, per round, where the system says.
        fps: frames over the median latency.
        error: why it stopped early, if it did; what had been measured is kept.
    """

    label: str
    role: str
    bundle: int
    artifact: str
    target: str
    runtime: str
    runtime_version: str | None
    precision: str
    sha256: str
    size_bytes: int
    threads: int | None
    frames: int
    load_ns: tuple[int, ...]
    first_run_ns: tuple[int, ...]
    latency_ns: tuple[tuple[int, ...], ...]
    baseline_rss_bytes: tuple[int, ...]
    peak_rss_bytes: tuple[int | None, ...]
    latency: stats.Summary | None
    fps: float | None
    speedup: stats.Speedup | None
    error: str | None

    @property
    def peak_growth_bytes(self) -> int | None:
        """Peak memory over the loaded runtime, the highest of the rounds: the comparable figure."""
        growths = [
            peak - base for peak, base in zip(self.peak_rss_bytes, self.baseline_rss_bytes) if peak is not None
        ]
        return max(growths, default=None)


@dataclass(frozen=True)
class Profile:
    """A whole measurement; `to_json` is what `write_profile` writes."""

    scope: str
    created_utc: str
    command: str
    settings: Settings
    host: Host
    device: Device
    bundles: tuple[BundleInfo, ...]
    subjects: tuple[Measurement, ...]

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1, allow_nan=False) + "\n"


class _Run:
    """What one subject has yielded so far."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.facts: dict[str, Any] = {}
        self.load_ns: list[int] = []
        self.first_run_ns: list[int] = []
        self.latency_ns: list[dict[int, int]] = []  # per round, by turn
        self.baseline_rss_bytes: list[int] = []
        self.peak_rss_bytes: list[int | None] = []
        self.error: str | None = None


def profile(
    subjects: Sequence[Subject],
    *,
    repeat: int = 20,
    warmup: int = 2,
    rounds: int = 3,
    threads: int | None = 2,
    on_progress: Progress | None = None,
) -> Profile:
    """Measure load time, first run, latency, frame rate and peak memory of each subject on this host.

    A subject that cannot be loaded or dies keeps what was measured of it, and its error; the others go on.

    Args:
        subjects: with labels of their own; all of them are in memory at once.
        repeat, warmup, rounds, threads: see `Settings`.
        on_progress: called with (steps done, steps in all, label of the subject at work).

    Raises RuntimeFailure for no subjects, a label used twice or a count that makes no sense.
    """
    settings = Settings(repeat, warmup, rounds, threads)
    _check(subjects, settings)
    host = describe_host()
    runs = [_Run(subject) for subject in subjects]
    tell = _Teller(on_progress, total=len(runs) * rounds * (1 + warmup + repeat))
    for _ in range(rounds):
        _measure_round(runs, settings, tell)
    reference = next((run for run in runs if run.subject.role == "teacher"), None)
    bundles = list({subject.bundle.path: subject.bundle for subject in subjects}.values())
    return Profile(
        scope=SCOPE,
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        settings=settings,
        host=host,
        device=Device(),
        bundles=tuple(_bundle_info(bundle) for bundle in bundles),
        subjects=tuple(_measurement(run, reference, bundles) for run in runs),
    )


def write_profile(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Write a profile as JSON, whole or not at all. Raises RuntimeFailure where it cannot be written."""
    files.write_atomically(Path(path), profile.to_json().encode())


class _Teller:
    def __init__(self, on_progress: Progress | None, total: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._done = 0

    def __call__(self, label: str) -> None:
        self._done += 1
        if self._on_progress:
            self._on_progress(self._done, self._total, label)


def _check(subjects: Sequence[Subject], settings: Settings) -> None:
    if not subjects:
        raise RuntimeFailure("There is nothing to measure: give at least one subject.")
    labels = [subject.label for subject in subjects]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise RuntimeFailure(f"Labels used twice: {', '.join(twice)}. Give each subject its own.")
    least = {"repeat": 1, "warmup": 0, "rounds": 1, "threads": 1}
    faults = [
        f"{name}={value} (at least {least[name]})"
        for name, value in asdict(settings).items()
        if value is not None and value < least[name]
    ]
    if faults:
        raise RuntimeFailure(f"Cannot measure with {', '.join(faults)}.")


def _measure_round(runs: Sequence[_Run], settings: Settings, tell: _Teller) -> None:
    with ExitStack() as stack:
        workers: dict[_Run, Worker] = {}
        for run in runs:
            if run.error is None:
                with _failures_kept(run):
                    workers[run] = worker = stack.enter_context(Worker())
                    _load(run, worker, settings.threads)
            tell(run.subject.label)
        for turn in range(-settings.warmup, settings.repeat):
            first = turn % len(runs)
            for run in [*runs[first:], *runs[:first]]:
                if run.error is None:
                    with _failures_kept(run):
                        time.sleep(_SETTLE_SECONDS)
                        latency_ns = workers[run].ask("run")["latency_ns"]
                        if turn >= 0:
                            run.latency_ns[-1][turn] = latency_ns
                tell(run.subject.label)
        for run in runs:
            if run.error is None:
                with _failures_kept(run):
                    run.peak_rss_bytes.append(workers[run].ask("memory")["peak_rss_bytes"])


def _load(run: _Run, worker: Worker, threads: int | None) -> None:
    reply = worker.load(run.subject.bundle, run.subject.artifact, threads)
    run.facts = {"runtime_version": reply["runtime_version"], "threads": reply["threads"]}
    run.load_ns.append(reply["load_ns"])
    run.baseline_rss_bytes.append(reply["baseline_rss_bytes"])
    run.latency_ns.append({})
    run.first_run_ns.append(worker.ask("run")["latency_ns"])


@contextmanager
def _failures_kept(run: _Run) -> Iterator[None]:
    """Turn a failure of one subject into its record's error."""
    try:
        yield
    except RuntimeFailure as error:
        run.error = str(error)


def _measurement(run: _Run, reference: _Run | None, bundles: Sequence[Bundle]) -> Measurement:
    artifact = run.subject.artifact
    batch, _, time_frames, _, _ = _clip_shape(run)
    frames = batch * time_frames
    samples_ns = [sample for samples in run.latency_ns for sample in samples.values()]
    summary = stats.summarize(samples_ns) if samples_ns else None
    return Measurement(
        label=run.subject.label,
        role=run.subject.role,
        bundle=[bundle.path for bundle in bundles].index(run.subject.bundle.path),
        artifact=artifact.name,
        target=artifact.target,
        runtime=artifact.runtime,
        runtime_version=run.facts.get("runtime_version"),
        precision=artifact.precision,
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        threads=run.facts.get("threads"),
        frames=frames,
        load_ns=tuple(run.load_ns),
        first_run_ns=tuple(run.first_run_ns),
        latency_ns=tuple(tuple(samples.values()) for samples in run.latency_ns),
        baseline_rss_bytes=tuple(run.baseline_rss_bytes),
        peak_rss_bytes=tuple(run.peak_rss_bytes),
        latency=summary,
        fps=frames * 1e9 / summary.median_ns if summary else None,
        speedup=_speedup(run, reference),
        error=run.error,
    )


def _speedup(run: _Run, reference: _Run | None) -> stats.Speedup | None:
    """Over the turns in which both ran: one of them may have died early. None between unequal clip sizes."""
    if reference is None or run is reference or _clip_shape(run) != _clip_shape(reference):
        return None
    pairs = [
        (theirs[turn], ours[turn])
        for theirs, ours in zip(reference.latency_ns, run.latency_ns)
        for turn in ours
        if turn in theirs
    ]
    if not pairs:
        return None
    return stats.compare(reference.subject.label, [pair[0] for pair in pairs], [pair[1] for pair in pairs])


def _clip_shape(run: _Run) -> tuple[int, ...]:
    return run.subject.bundle.manifest.outputs[0].shape


def _bundle_info(bundle: Bundle) -> BundleInfo:
    manifest = bundle.manifest
    return BundleInfo(manifest.name, manifest.created_utc, manifest.provenance, manifest.versions)
