"""Measuring artefacts on this host, side by side.

Every subject runs in a process of its own. All processes of a round are alive together and are asked for one
run at a time, in turn, so that drift of the machine hits all of them alike and ratios hold; who begins changes
from turn to turn. Each round starts new processes, so load time, first run and memory have one value a round.
`profile_record` is what comes out.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

from . import host
from .bundle import Bundle
from .errors import RuntimeFailure
from .manifest import Artifact
from .process import Worker
from .profile_record import (
    BundleInfo,
    ComputeUnits,
    Conditions,
    Limits,
    Measurement,
    Parity,
    Profile,
    Round,
    Settings,
)
from .session import SESSIONS

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


class _Run:
    """What one subject has yielded so far."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.facts: dict[str, Any] = {}
        self.rounds: list[Round] = []
        self.parity: tuple[Parity, ...] | None = None
        self.error: str | None = None

    def note(self, **facts: Any) -> None:
        """Add to the round at work."""
        self.rounds[-1] = replace(self.rounds[-1], **facts)

    def sample(self, latency_ns: int, first_frame_ns: int | None) -> None:
        """Add a timed run to the round at work; None where it gave all frames at once."""
        one = self.rounds[-1]
        first = () if first_frame_ns is None else (first_frame_ns,)
        self.note(latency_ns=(*one.latency_ns, latency_ns), first_frame_ns=(*one.first_frame_ns, *first))


def profile(
    subjects: Sequence[Subject],
    *,
    repeat: int = 20,
    warmup: int = 2,
    rounds: int = 3,
    threads: int | None = 2,
    cooldown_seconds: float = 0.0,
    on_progress: Progress | None = None,
) -> Profile:
    """Measure load time, first run, every timed run, peak memory and parity of each subject on this host.

    A streamed artefact decodes the golden clip piece by piece; frames are thrown away as they come, and the time of
    the first one is kept.

    A subject that cannot be loaded or dies keeps what was measured of it, and its error; the others go on.

    Args:
        subjects: with labels of their own; all of them are in memory at once.
        repeat, warmup, rounds, threads: see `Settings`.
        cooldown_seconds: idle time before each round but the first.
        on_progress: called with (steps done, steps in all, label of the subject at work).

    Raises RuntimeFailure for no subjects, a label used twice, a count that makes no sense, and a runtime whose
    times on this machine say nothing (`Session.untimed`).
    """
    settings = Settings(repeat, warmup, rounds, threads, round(cooldown_seconds * 1e9), interleaved=True)
    _check(subjects, settings)
    device = host.describe_host()
    runs = [_Run(subject) for subject in subjects]
    tell = _Teller(on_progress, total=len(runs) * rounds * (1 + warmup + repeat))
    for index in range(rounds):
        if index:
            time.sleep(cooldown_seconds)
        _measure_round(runs, settings, tell, last=index == rounds - 1)
    bundles = list({subject.bundle.path: subject.bundle for subject in subjects}.values())
    return Profile(
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]) or None,
        software={"handheld": version("handheld"), "python": sys.version.split()[0]},
        settings=settings,
        device=device,
        bundles=tuple(bundle_info(bundle) for bundle in bundles),
        subjects=tuple(_measurement(run, bundles) for run in runs),
    )


def bundle_info(bundle: Bundle) -> BundleInfo:
    """What a profile says of a bundle."""
    manifest = bundle.manifest
    return BundleInfo(manifest.name, manifest.created_utc, manifest.provenance, manifest.versions)


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
    for subject in subjects:
        if reason := SESSIONS[subject.artifact.runtime].untimed():
            raise RuntimeFailure(f"{subject.label} is not measured: {reason}.")
    least = {"repeat": 1, "warmup": 0, "rounds": 1, "threads": 1, "cooldown_ns": 0, "interleaved": 0}
    faults = [
        f"{name}={value} (at least {least[name]})"
        for name, value in asdict(settings).items()
        if value is not None and value < least[name]
    ]
    if faults:
        raise RuntimeFailure(f"Cannot measure with {', '.join(faults)}.")


def _measure_round(runs: Sequence[_Run], settings: Settings, tell: _Teller, last: bool) -> None:
    before = host.conditions()
    with ExitStack() as stack:
        workers: dict[_Run, Worker] = {}
        for run in runs:
            if run.error is None:
                with _failures_kept(run):
                    workers[run] = worker = stack.enter_context(Worker())
                    _load(run, worker, settings.threads, before)
            tell(run.subject.label)
        for turn in range(-settings.warmup, settings.repeat):
            first = turn % len(runs)
            for run in [*runs[first:], *runs[:first]]:
                if run.error is None:
                    with _failures_kept(run):
                        time.sleep(_SETTLE_SECONDS)
                        reply = workers[run].ask("run")
                        if turn >= 0:
                            run.sample(reply["latency_ns"], reply["first_frame_ns"])
                tell(run.subject.label)
        after = host.conditions()
        for run in runs:
            if run.error is None:
                with _failures_kept(run):
                    run.note(peak_bytes=workers[run].ask("memory")["peak_bytes"], after=after)
                    if last:
                        outputs = workers[run].ask("compare")["outputs"]
                        run.parity = tuple(Parity(**output) for output in outputs)


def _load(run: _Run, worker: Worker, threads: int | None, before: Conditions) -> None:
    reply = worker.load(run.subject.bundle, run.subject.artifact, threads)
    run.facts = {"runtime_version": reply["runtime_version"], "threads": reply["threads"]}
    run.rounds.append(
        Round(
            load_ns=reply["load_ns"],
            first_run_ns=None,
            latency_ns=(),
            first_frame_ns=(),
            baseline_bytes=reply["baseline_bytes"],
            peak_bytes=None,
            flash=None,
            before=before,
            after=Conditions(),
        )
    )
    run.note(first_run_ns=worker.ask("run")["latency_ns"])


@contextmanager
def _failures_kept(run: _Run) -> Iterator[None]:
    """Turn a failure of one subject into its record's error."""
    try:
        yield
    except RuntimeFailure as error:
        run.error = str(error)


def _measurement(run: _Run, bundles: Sequence[Bundle]) -> Measurement:
    artifact, method = run.subject.artifact, run.subject.artifact.methods[0]
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
        method=method.name,
        input_shapes=method.inputs,
        output_shapes=method.outputs,
        unit="frame",
        units_per_run=run.subject.bundle.manifest.outputs[0].frames(method.outputs[0]),
        prompt_tokens=None,
        threads=run.facts.get("threads"),
        compute_units=ComputeUnits(),
        tolerance=Limits(artifact.tolerance.max_abs, artifact.tolerance.min_psnr_db),
        rounds=tuple(run.rounds),
        parity=run.parity,
        error=run.error,
    )
