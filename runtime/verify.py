"""Replaying a bundle's golden tensors through its artefacts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from .bundle import Bundle
from .errors import BundleError, RuntimeFailure, RuntimeMissing
from .manifest import Artifact, Tolerance
from .process import Worker
from .session import SESSIONS
from .stats import psnr_db

Status = Literal["pass", "fail", "not verified"]


@dataclass(frozen=True)
class Verdict:
    """What became of one artefact.

    Attributes:
        status: "not verified" where this machine cannot run it.
        reason: why it is not "pass"; empty where it is.
        max_abs_error: largest absolute difference from the golden outputs, of all shapes; None where it did not
            run.
        psnr_db: lowest over shapes and outputs; the peak is the width of the output's range (2.0 for [-1, 1]), or
            of the golden values where it has none. Infinite for equal outputs.
        tolerance: the limit, and where it comes from.
        runtime_version: of the library that ran it.
    """

    artifact: Artifact
    status: Status
    reason: str
    max_abs_error: float | None
    psnr_db: float | None
    tolerance: Tolerance
    runtime_version: str | None


def verify(bundle: Bundle, *, only: Collection[str] | None = None) -> list[Verdict]:
    """Run each artefact on the golden inputs of all its shapes and compare with the golden outputs.

    An artefact whose hash is wrong fails before it is loaded. Each runs in a process of its own, so that a
    crash of a native runtime is a failure with the signal's name.

    Args:
        only: names of the artefacts to verify; None is all.

    Returns:
        One verdict per artefact, in the manifest's order.

    Raises BundleError for a name in `only` that the bundle does not have.
    """
    wanted = None if only is None else {bundle.artifact(name).name for name in only}
    chosen = [artifact for artifact in bundle.artifacts if wanted is None or artifact.name in wanted]
    try:
        bundle.check_golden()
    except BundleError as error:
        return [_verdict(artifact, "fail", f"The golden tensors cannot be trusted. {error}") for artifact in chosen]
    return [_verify_one(bundle, artifact) for artifact in chosen]


def run_once(bundle: Bundle) -> None:
    """Load and run each artefact that this machine can run, once, in a process of its own.

    Raises RuntimeFailure naming the artefact that does not load or run.
    """
    for artifact in bundle.artifacts:
        if SESSIONS[artifact.runtime].unavailable():
            continue
        try:
            with Worker() as worker:
                worker.load(bundle, artifact, threads=None)
                worker.ask("run")
        except RuntimeFailure as error:
            raise RuntimeFailure(
                f"Artefact {artifact.name} was written, and does not run: {error}\nNothing was kept. "
                f"`handheld check` says what {artifact.runtime} does not take of this model."
            ) from error


def _verify_one(bundle: Bundle, artifact: Artifact) -> Verdict:
    version = None
    try:
        # Before asking for the runtime: an altered artefact fails on every machine.
        bundle.check(artifact)
        if reason := SESSIONS[artifact.runtime].unavailable():
            raise RuntimeMissing(reason)
        with Worker() as worker:
            version = worker.load(bundle, artifact, threads=None)["runtime_version"]
            found = worker.ask("compare")
    except RuntimeMissing as error:
        return _verdict(artifact, "not verified", str(error))
    except RuntimeFailure as error:
        return _verdict(artifact, "fail", str(error), version=version)
    outputs = found["outputs"]
    if not all(one["finite"] for one in outputs):
        return _verdict(artifact, "fail", "The output holds NaN or infinity.", version=version)
    largest = max(one["max_abs_error"] for one in outputs)
    lowest_db = min(psnr_db(one["mean_squared_error"], one["peak"]) for one in outputs)
    if fault := artifact.tolerance.fault(largest, lowest_db):
        return _verdict(artifact, "fail", f"{fault}.", largest, lowest_db, version)
    return _verdict(artifact, "pass", "", largest, lowest_db, version)


def _verdict(
    artifact: Artifact,
    status: Status,
    reason: str,
    max_abs_error: float | None = None,
    psnr_db: float | None = None,
    version: str | None = None,
) -> Verdict:
    return Verdict(artifact, status, reason, max_abs_error, psnr_db, artifact.tolerance, version)
