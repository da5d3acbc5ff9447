"""Every precision of the targets, side by side: distance from fp32 eager, size, speed, peak memory.

    python benchmarks/quantisation.py runs/first --out quantisation.json
    python benchmarks/quantisation.py ltx hunyuan --target onnx --size 256 --frames 9

A run folder is measured on its held-out clips, with its weights; a preset has random weights and random latents,
whose PSNR says little of a trained model's (time does not depend on them). PSNR is the lowest of the clips', from
the fp32 eager frames at peak 2.0. Artefacts run as in `benchmarks/lowering.py`: a process each, one run at a time
in turn; speed ratios are medians of pairs of runs, against fp32 of the same target and against the released graph
exported as it is to ONNX. Above 1 is faster.

The JSON: schema_version, command, created_utc, versions, host, settings, and per model its latents, their origin
and, per artefact, the figures of the table and all samples `latency_ns`, a list per round. None is unknown.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lowering import AS_IS, variants

from handheld.convert import TARGETS, export
from handheld.convert.pipeline import versions
from handheld.convert.precision_auto import lowest_psnr_db
from handheld.runtime import files
from handheld.runtime.profile import Profile, Subject, profile
from handheld.sources import open_source

SCHEMA_VERSION = 1


def measure(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], Profile]:
    """One model: the JSON of it, and the profile that it comes from."""
    source = open_source(name)
    latents, origin = source.example(options.frames, options.size, options.size)
    calibration, calibrated_on = source.calibration(latents)
    clips = [latents, *(clip for clip in calibration if not torch.equal(clip, latents))]
    with torch.no_grad():
        frames = [source.model(clip) for clip in clips]
    wanted = {AS_IS: (variants(False)[AS_IS], "fp32")}
    for target in (TARGETS[name] for name in options.target):
        for precision in target.precisions:
            if not options.precision or precision in options.precision:
                wanted[f"{target.name}-{precision}"] = target, precision
    with tempfile.TemporaryDirectory() as folder:
        subjects = []
        for label, (target, precision) in wanted.items():
            print(f"{name}: exporting {label}", file=sys.stderr, flush=True)
            bundle = export(
                source.model,
                latents,
                Path(folder) / label,
                targets=[target],
                precision=precision,
                calibration=calibration,
                name=f"{source.name} {label}",
                provenance=source.provenance,
            )
            subjects.append(Subject(label, bundle, bundle.artifacts[0], "teacher" if label == AS_IS else "student"))
        psnrs = [lowest_psnr_db(subject.bundle, clips, frames) for subject in subjects]
        print(f"{name}: measuring", file=sys.stderr, flush=True)
        measured = profile(
            subjects,
            repeat=options.repeat,
            warmup=options.warmup,
            rounds=options.rounds,
            threads=options.threads,
        )
    times = {found.label: [one.latency_ns for one in found.rounds] for found in measured.subjects}
    rows = [
        {
            "artefact": found.label,
            "runtime": found.runtime,
            "psnr_db": round(psnr, 2),
            "size_bytes": found.size_bytes,
            "median_ns": found.latency.median_ns if found.latency else None,
            "speed_against_fp32": speed(times.get(f"{subject.artifact.target}-fp32"), times[found.label]),
            "speed_against_as_is": speed(times[AS_IS], times[found.label]),
            "peak_growth_bytes": found.peak_growth_bytes,
            "delegation": subject.artifact.delegation,
            "latency_ns": times[found.label],
            "error": found.error,
        }
        for subject, psnr, found in zip(subjects, psnrs, measured.subjects)
    ]
    result = {
        "model": name,
        "latents": list(latents.shape),
        "golden_latents": origin,
        "calibration_latents": calibrated_on,
        "clips": len(clips),
        "artefacts": rows,
    }
    return result, measured


def speed(reference: Sequence[Sequence[int]] | None, own: Sequence[Sequence[int]]) -> float | None:
    """Median over pairs of runs, made one after the other, of the reference's time over one's own."""
    pairs = [a / b for first, second in zip(reference or (), own) for a, b in zip(first, second)]
    return round(statistics.median(pairs), 3) if pairs else None


def show(result: dict[str, Any]) -> None:
    """Print one model as a table."""
    print(f"\n{result['model']}, latents {'x'.join(map(str, result['latents']))}: {result['golden_latents']}")
    print(f"calibrated on {result['calibration_latents']}; PSNR over {result['clips']} clips")
    print(f"{'artefact':<16}{'PSNR, dB':>9}{'MB':>8}{'median ms':>11}{'x fp32':>8}{'x as-is':>9}{'peak MB':>9}")
    for row in result["artefacts"]:
        print(
            f"{row['artefact']:<16}{row['psnr_db']:>9.1f}{row['size_bytes'] / 1e6:>8.1f}"
            f"{_cell(row['median_ns'], 11, '.1f', 1e6)}{_cell(row['speed_against_fp32'], 8, '.2f')}"
            f"{_cell(row['speed_against_as_is'], 9, '.2f')}{_cell(row['peak_growth_bytes'], 9, '.0f', 1e6)}"
            + (f"  {row['error']}" if row["error"] else "")
        )


def _cell(value: float | None, width: int, form: str, unit: float = 1.0) -> str:
    return f"{'-' if value is None else format(value / unit, form):>{width}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="+", help="run folders or presets")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="repeatable; onnx and android")
    parser.add_argument("--precision", action="append", help="only these; repeatable")
    parser.add_argument("--size", type=int, help="height and width in pixels: the run's, else 256")
    parser.add_argument("--frames", type=int, help="the run's, else 9 or the nearest length that there is")
    parser.add_argument("--repeat", type=int, default=10, help="timed runs a round")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("quantisation.json"))
    options = parser.parse_args()
    options.target = options.target or ["onnx", "android"]
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": shlex.join(["python", "benchmarks/quantisation.py", *sys.argv[1:]]),
        "created_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": versions(),
    }
    results = []
    for name in options.model:
        result, measured = measure(name, options)
        report |= {"device": asdict(measured.device), "settings": asdict(measured.settings)}
        results.append(result)
        show(result)
        # After each model: an interrupted run keeps what it has.
        text = json.dumps({**report, "models": results}, indent=1, allow_nan=False) + "\n"
        files.write_atomically(options.out, text.encode())
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
