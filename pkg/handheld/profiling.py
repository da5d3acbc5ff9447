"""`handheld.profile`: a bundle's artefacts on this host, beside the teacher that the student learned from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from handheld.runtime.bundle import Artifact, Bundle, read_bundle
from handheld.runtime.errors import RuntimeMissing
from handheld.runtime.profile import Progress, Subject
from handheld.runtime.profile import profile as measured
from handheld.runtime.profile_record import Profile
from handheld.runtime.session import SESSIONS

# Of a run's folder, as `distill` writes them.
_PICTURES = (
    ("Original, teacher and student on held-out clips", "frames.png"),
    ("Losses", "plots/loss.png"),
    ("Held-out PSNR", "plots/psnr.png"),
)


def profile(
    bundle: Bundle | str | Path,
    *,
    teacher: bool = True,
    repeat: int = 20,
    warmup: int = 2,
    rounds: int = 3,
    threads: int | None = 2,
    cooldown_seconds: float = 0.0,
    progress: Callable[[str], Any] = lambda doing: None,
    on_progress: Progress | None = None,
) -> Profile:
    """Measure every artefact of a bundle that runs here, and the teacher beside them.

    The teacher's decoder is exported to ONNX without our rewrites and runs in onnxruntime on the golden latents, in
    the same rounds; `Profile.speedup` is against it.

    Args:
        bundle: the bundle, or its folder.
        teacher: measure the teacher too, where the manifest names one.
        repeat, warmup, rounds, threads: see `runtime.profile_record.Settings`.
        cooldown_seconds: idle time before each round but the first.
        progress: called with a sentence before the teacher is exported.
        on_progress: called with (steps done, steps in all, label of the subject at work).

    Raises RuntimeMissing where no artefact can be measured here, with each reason (`unmeasured`); BundleError for a
    bundle that is not sound; ModelError for a teacher that cannot be loaded; RuntimeFailure for counts that make no
    sense.
    """
    bundle = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    skipped = unmeasured(bundle)
    artifacts = [artifact for artifact in bundle.artifacts if artifact.name not in skipped]
    if not artifacts:
        raise RuntimeMissing(
            f"No artefact of {bundle.path} is measured here: "
            + "; ".join(f"{name}: {why}" for name, why in skipped.items())
        )
    origin = bundle.manifest.provenance.get("teacher") if teacher else None
    with tempfile.TemporaryDirectory(prefix="handheld-") as scratch:
        subjects = _students(bundle, artifacts)
        if origin:
            progress("Exporting the teacher's decoder for comparison")
            subjects = [_teacher(bundle, origin, Path(scratch)), *subjects]
        return measured(
            subjects,
            repeat=repeat,
            warmup=warmup,
            rounds=rounds,
            threads=threads,
            cooldown_seconds=cooldown_seconds,
            on_progress=on_progress,
        )


def unmeasured(bundle: Bundle) -> dict[str, str]:
    """Artefacts that `profile` leaves out, by name, and why: no runtime here, or one whose times say nothing."""
    sessions = {artifact.name: SESSIONS[artifact.runtime] for artifact in bundle.artifacts}
    return {name: why for name, s in sessions.items() if (why := s.unavailable() or s.untimed())}


def run_pictures(bundle: Bundle) -> list[tuple[str, Path]]:
    """Captions and files of the pictures of the run that a bundle was exported from, where they still are."""
    run = bundle.manifest.provenance.get("run")
    if run is None:
        # Not "": that is the current folder, whose pictures are of something else.
        return []
    return [(caption, Path(run) / name) for caption, name in _PICTURES if (Path(run) / name).is_file()]


def run_quality(bundle: Bundle) -> dict[str, dict[str, float]]:
    """What the run that a bundle was exported from scored on held-out clips; empty without a run."""
    provenance = bundle.manifest.provenance
    metrics = provenance.get("metrics", {}) if "run" in provenance else {}
    return {
        f"{who}, held-out clips": {
            "PSNR, dB": scores["psnr_db"],
            "SSIM": scores["ssim"],
            "PSNR min-max, dB": scores["psnr_minmax_db"],
            "SSIM min-max": scores["ssim_minmax"],
        }
        for who, scores in metrics.items()
    }


def _students(bundle: Bundle, artifacts: Sequence[Artifact]) -> list[Subject]:
    return [Subject(f"student, {artifact.name}", bundle, artifact) for artifact in artifacts]


def _teacher(bundle: Bundle, origin: dict[str, str], scratch: Path) -> Subject:
    """The teacher's decoder as torch.onnx exports it."""
    from handheld.convert import TARGETS, export
    from handheld.models.teachers import load_teacher

    onnx = TARGETS["onnx"]
    as_is = {name: replace(precision, rewrites=()) for name, precision in onnx.precisions.items()}
    exported = export(
        load_teacher(origin["name"], origin["source"]).decoder_module(),
        torch.from_numpy(bundle.golden()[0]["latents"]),
        scratch / "teacher",
        targets=[replace(onnx, precisions=as_is)],
        name=f"teacher {origin['name']}",
        provenance={"source": "teacher", "teacher": origin},
    )
    return Subject("teacher, onnx", exported, exported.artifacts[0], "teacher")
