"""handheld profile"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .console import say, size, status, table
from .progress import bar

if TYPE_CHECKING:
    from handheld.runtime.bundle import Artifact, Bundle
    from handheld.runtime.profile import Subject
    from handheld.runtime.profile_record import Profile

EPILOG = (
    "Example: [dim]handheld profile bundle --out report[/dim]  (writes report/profile.json and report/index.html)"
)


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.", show_default=False)],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="Folder for profile.json and index.html.", show_default="BUNDLE-profile"),
    ] = None,
    teacher: Annotated[
        bool, typer.Option(help="Measure the run's teacher beside the student, as onnxruntime runs it.")
    ] = True,
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs of each artefact a round.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each in new processes.")] = 3,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed runs before them.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each runtime.")] = 2,
) -> None:
    """Measure every artefact that runs on this machine, side by side with the teacher.

    Load time, first run, steady latency (median, p90, p99), frames per second and peak memory, each artefact in
    a fresh process, runs interleaved so that ratios hold on a noisy machine. These are figures of this host: they
    say nothing about a phone.
    """
    from handheld.runtime.bundle import read_bundle

    opened = read_bundle(bundle)
    profile_and_show(opened, out or Path(f"{bundle}-profile"), teacher, repeat, rounds, warmup, threads)


def profile_and_show(
    bundle: Bundle, out: Path, teacher: bool, repeat: int, rounds: int, warmup: int, threads: int
) -> Profile:
    """Measure a bundle, print the table, write JSON and page."""
    import tempfile

    from handheld.runtime.profile import profile
    from handheld.runtime.profile_file import write_profile
    from handheld.runtime.report import write_report
    from handheld.runtime.session import SESSIONS

    from .verify import verdicts_of

    out.mkdir(parents=True, exist_ok=True)
    runnable = [a for a in bundle.artifacts if SESSIONS[a.runtime].unavailable() is None]
    skipped = [a for a in bundle.artifacts if a not in runnable]
    with tempfile.TemporaryDirectory(prefix="handheld-") as scratch:
        subjects = _subjects(bundle, runnable, teacher, Path(scratch))
        with bar("measuring") as update:
            result = profile(
                subjects, repeat=repeat, rounds=rounds, warmup=warmup, threads=threads, on_progress=update
            )
    with status("Verifying"):
        verdicts = verdicts_of(bundle)
    _show(result)
    for artifact in skipped:
        say(f"{artifact.name} was not measured: {SESSIONS[artifact.runtime].unavailable()}")
    write_profile(result, out / "profile.json")
    images, quality = _run_pictures(bundle)
    write_report(
        result, out / "index.html", title=bundle.manifest.name, images=images, verdicts=verdicts, quality=quality
    )
    say(f"{result.scope[0].upper()}{result.scope[1:]}.\nPage: {out / 'index.html'}")
    return result


def _subjects(bundle: Bundle, artifacts: Sequence[Artifact], with_teacher: bool, scratch: Path) -> list[Subject]:
    """The bundle's artefacts, and before them the teacher's decoder as torch.onnx exports it."""
    from handheld.runtime.profile import Subject

    subjects = [Subject(f"student, {a.name}", bundle, a) for a in artifacts]
    origin = bundle.manifest.provenance.get("teacher")
    if not (with_teacher and origin):
        return subjects

    from dataclasses import replace

    import torch

    from handheld.convert import TARGETS, export
    from handheld.models.teachers import load_teacher

    onnx = TARGETS["onnx"]
    as_is = {name: replace(p, rewrites=()) for name, p in onnx.precisions.items()}
    with status("Exporting the teacher's decoder for comparison"):
        decoder = load_teacher(origin["name"], origin["source"]).decoder_module()
        exported = export(
            decoder,
            torch.from_numpy(bundle.golden()[0]["latents"]),
            scratch / "teacher",
            targets=[replace(onnx, precisions=as_is)],
            name=f"teacher {origin['name']}",
            provenance={"source": "teacher", "teacher": origin},
        )
    return [Subject("teacher, onnx", exported, exported.artifacts[0], "teacher"), *subjects]


def _run_pictures(bundle: Bundle) -> tuple[list[tuple[str, Path]], dict[str, dict[str, float]]]:
    """Pictures and quality table of the run that the bundle was exported from, where it still is."""
    provenance = bundle.manifest.provenance
    folder = Path(provenance.get("run", ""))
    pictures = (
        ("Original, teacher and student on held-out clips", "frames.png"),
        ("Losses", "plots/loss.png"),
        ("Held-out PSNR", "plots/psnr.png"),
    )
    images = [(caption, folder / name) for caption, name in pictures if (folder / name).is_file()]
    quality = {
        f"{who}, held-out clips": {
            "PSNR, dB": scores["psnr_db"],
            "SSIM": scores["ssim"],
            "PSNR min-max, dB": scores["psnr_minmax_db"],
            "SSIM min-max": scores["ssim_minmax"],
        }
        for who, scores in provenance.get("metrics", {}).items()
    }
    return images, quality


def _show(result: Profile) -> None:

    def ms(ns: float) -> str:
        return f"{ns / 1e6:.1f}"

    rows = []
    for m in result.subjects:
        if m.latency is None:
            rows.append([m.label, f"failed: {m.error}", *["–"] * 8])
            continue
        growth, speedup = m.peak_growth_bytes, result.speedup(m)
        rows.append(
            [
                m.label,
                ms(sorted(m.load_ns)[len(m.load_ns) // 2]),
                ms(sorted(m.first_run_ns)[len(m.first_run_ns) // 2]),
                ms(m.latency.median_ns),
                ms(m.latency.p90_ns),
                ms(m.latency.p99_ns),
                f"{m.units_per_second:.1f}",
                "–" if growth is None else size(growth),
                size(m.size_bytes),
                f"{speedup.median_of_pairs:.2f}x" if speedup else "–",
            ]
        )
    table(
        f"{result.device.name}, {result.settings.threads} threads (ms; memory over the loaded runtime)",
        ["", "load", "first", "median", "p90", "p99", "FPS", "peak memory", "file", "speed"],
        rows,
    )
