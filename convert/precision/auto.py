"""`--precision auto`: of every target the smallest artefact whose output stays over a PSNR floor."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handheld.models import LatentStatistics
from handheld.runtime.bundle import Bundle, BundleWriter
from handheld.runtime.errors import RuntimeFailure, RuntimeMissing
from handheld.runtime.manifest import Artifact
from handheld.runtime.session import SESSIONS, load_session
from handheld.runtime.stats import psnr_db

from ..coreml.evaluator import evaluate, load_program
from ..errors import ExportError
from ..pipeline import Step, export
from ..target import Target

AUTO = "auto"
DEFAULT_MIN_PSNR_DB = 40.0

# The other precisions are compared with it. It is the largest, and is lowered last.
_FULL = "fp32"
_FULL_BYTES = 4
_HIGHEST_DB = 200.0  # written for all that is higher; JSON has no infinity


@dataclass(frozen=True)
class Trial:
    """One precision of one target.

    Attributes:
        size_bytes: of its artefact; None where it was not lowered.
        psnr_db: lowest over the clips, from fp32 eager, peak 2.0; None where it was not measured.
        kept: whether the bundle has it.
        why: the reason.
    """

    precision: str
    size_bytes: int | None = None
    psnr_db: float | None = None
    kept: bool = False
    why: str = ""


@dataclass(frozen=True)
class _Clips:
    """What candidates are measured on: latents and fp32 eager frames, NCTHW."""

    latents: tuple[Tensor, ...]
    frames: tuple[Tensor, ...]


def export_smallest(
    model: nn.Module,
    latents: Tensor,
    out: str | Path,
    *,
    targets: Sequence[Target],
    min_psnr_db: float,
    calibration: Sequence[Tensor] = (),
    name: str,
    provenance: Mapping[str, Any],
    overwrite: bool = False,
    validate: bool = False,
    value_range: tuple[float, float] | None = None,
    statistics: LatentStatistics | None = None,
    progress: Callable[[Step], None] = lambda step: None,
) -> Bundle:
    """`pipeline.export` with a precision of its own for each target: the smallest artefact that is good enough.

    Every precision of a target is lowered, and run on the example and the calibration latents: in its runtime, or,
    for Core ML on a machine that is no Mac, in the reference evaluator. fp32 comes last. It is not lowered where an
    artefact smaller than four bytes a parameter is kept already. The table of all trials is in the artefact's
    settings, as `auto`.

    Args:
        min_psnr_db: lowest allowed PSNR of any clip from the fp32 eager frames, at peak 2.0.
        The others: as `pipeline.export` has them.

    Raises ExportError as `pipeline.export` does, and where no precision of a target reaches the floor.
    """
    measured = (latents, *(clip for clip in calibration if not torch.equal(clip, latents)))
    with tempfile.TemporaryDirectory() as scratch, BundleWriter(out, overwrite=overwrite) as writer:
        progress(Step("", "running the model on the clips to compare with"))
        with torch.no_grad():
            clips = _Clips(measured, tuple(model.eval()(clip) for clip in measured))
        parameters = sum(p.numel() for p in model.parameters())
        kept: Bundle | None = None
        for target in targets:

            def lower(precision: str, target: Target = target) -> Bundle:
                return export(
                    model,
                    latents,
                    Path(scratch) / f"{target.name}-{precision}",
                    targets=[target],
                    precision=precision,
                    calibration=calibration,
                    name=name,
                    provenance=provenance,
                    validate=validate,
                    value_range=value_range,
                    statistics=statistics,
                    progress=progress,
                )

            kept, trials = _smallest(target, lower, clips, min_psnr_db, _FULL_BYTES * parameters, progress)
            _add(writer, kept, {"min_psnr_db": min_psnr_db, "clips": len(measured), "trials": trials})
        if kept is None:
            raise ExportError("No target given.")
        writer.set_golden(*kept.golden())
        manifest = kept.manifest
        writer.describe(
            name=manifest.name,
            provenance=manifest.provenance,
            versions=manifest.versions,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
        )
    return writer.bundle


def _smallest(
    target: Target,
    lower: Callable[[str], Bundle],
    clips: _Clips,
    min_psnr_db: float,
    full_bytes: int,
    progress: Callable[[Step], None],
) -> tuple[Bundle, list[Trial]]:
    """The bundle to keep, and what became of each precision."""
    best: tuple[Bundle, Trial] | None = None
    trials: list[Trial] = []
    for precision in sorted(target.precisions, key=lambda name: name == _FULL):
        if precision == _FULL and best and (best[1].size_bytes or 0) < full_bytes:
            trials.append(Trial(precision, why=f"not lowered: its weights alone are {full_bytes} bytes"))
            continue
        try:
            bundle = lower(precision)
        except ExportError as error:
            trials.append(Trial(precision, why=f"not lowered: {error}"))
            continue
        progress(Step(target.name, f"measuring {precision}"))
        trial = _measure(bundle, precision, clips, min_psnr_db)
        trials.append(trial)
        if not trial.why and (best is None or (trial.size_bytes or 0) < (best[1].size_bytes or 0)):
            best = bundle, trial
    if best is None:
        found = "; ".join(f"{trial.precision}: {trial.why}" for trial in trials)
        raise ExportError(f"No precision of target {target.name} is known to reach {min_psnr_db:g} dB ({found}).")
    bundle, chosen = best
    return bundle, [
        replace(trial, kept=True, why="the smallest that reaches the floor")
        if trial is chosen
        else replace(trial, why=trial.why or f"larger than {chosen.precision}")
        for trial in trials
    ]


def _measure(bundle: Bundle, precision: str, clips: _Clips, min_psnr_db: float) -> Trial:
    """A trial, whose `why` is empty where it reaches the floor."""
    trial = Trial(precision, bundle.artifacts[0].size_bytes)
    try:
        lowest = lowest_psnr_db(bundle, clips.latents, clips.frames)
    except RuntimeMissing as error:
        return replace(trial, why=f"not measured: {error}")
    except (RuntimeFailure, ExportError) as error:
        return replace(trial, why=f"does not run: {error}")
    if math.isnan(lowest):
        return replace(trial, why="its output holds NaN or infinity")
    trial = replace(trial, psnr_db=round(min(lowest, _HIGHEST_DB), 2))
    return trial if lowest >= min_psnr_db else replace(trial, why=f"below the floor of {min_psnr_db:g} dB")


def lowest_psnr_db(bundle: Bundle, latents: Sequence[Tensor], frames: Sequence[Tensor]) -> float:
    """Lowest PSNR of a bundle's one artefact over clips, at peak 2.0; NaN where an output is not finite.

    Args:
        latents: clips in the bundle's shape.
        frames: what each of them should give.

    Raises RuntimeMissing where nothing here runs the artefact, RuntimeFailure and ExportError where it fails.
    """
    (artifact,) = bundle.artifacts
    decode, close = _decoder(bundle, artifact)
    try:
        errors = [np.mean((decode(x.numpy()).astype(np.float64) - y.numpy()) ** 2) for x, y in zip(latents, frames)]
    finally:
        close()
    worst = float(np.max(errors))  # NaN if any is
    return psnr_db(worst, 2.0) if math.isfinite(worst) else math.nan


def _decoder(bundle: Bundle, artifact: Artifact) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[], None]]:
    """Latents to frames by the artefact, and how to release it."""
    session_type = SESSIONS[artifact.runtime]
    if artifact.runtime == "coreml" and session_type.unavailable():
        program = load_program(bundle.locate(artifact.path))
        return lambda latents: evaluate(program, {"latents": latents}).outputs["frames"], lambda: None
    session = load_session(bundle, artifact)
    return lambda latents: session.run({"latents": latents})["frames"], session.close


def _add(writer: BundleWriter, bundle: Bundle, auto: dict[str, Any]) -> None:
    """Copy a bundle's artefact into the one that is written, with the table of what it was chosen from."""
    (artifact,) = bundle.artifacts
    source, folder = bundle.locate(artifact.path), writer.artifact_dir(artifact.name)
    if source.is_dir():
        shutil.copytree(source, folder / source.name)
    else:
        shutil.copy2(source, folder / source.name)
    given = {f.name: getattr(artifact, f.name) for f in fields(artifact) if f.name not in ("sha256", "size_bytes")}
    table = {**auto, "trials": [asdict(trial) for trial in auto["trials"]]}
    writer.add_artifact(**{**given, "settings": {**artifact.settings, "auto": table}})
