"""Every precision of the targets, side by side: distance from fp32 eager, size, speed, peak memory.

    python benchmarks/quantisation.py runs/first --out quantisation.json
    python benchmarks/quantisation.py ltx hunyuan --target onnx --size 256 --frames 9

A run folder is measured on its held-out clips, with its weights; a preset has random weights and random latents,
whose PSNR says little of a trained model's (time does not depend on them). PSNR is the lowest of the clips', from
the fp32 eager frames at peak 2.0. Artefacts run as in `benchmarks/lowering.py`: a process each, one run at a time
in turn; speed ratios are medians of pairs of runs, against fp32 of the same target and against the released graph
exported as it is to ONNX. Above 1 is faster.

The JSON: schema_version, command, created_utc, versions, device, settings, and per model its latents, their origin
and, per artefact, the figures of the table and all samples `latency_ns`, a list per round. None is unknown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from lowering import variants
from side_by_side import AS_IS, Report, add_options, cell, exported, measured

from handheld.convert import TARGETS
from handheld.convert.precision.auto import lowest_psnr_db
from handheld.runtime.profile import Profile
from handheld.sources import open_source


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
        subjects = [
            exported(label, source, latents, folder, target, precision, calibration)
            for label, (target, precision) in wanted.items()
        ]
        psnrs = [lowest_psnr_db(subject.bundle, clips, frames) for subject in subjects]
        timed = measured(subjects, options)
    times = {found.label: [one.latency_ns for one in found.rounds] for found in timed.subjects}
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
        for subject, psnr, found in zip(subjects, psnrs, timed.subjects)
    ]
    result = {
        "model": name,
        "latents": list(latents.shape),
        "golden_latents": origin,
        "calibration_latents": calibrated_on,
        "clips": len(clips),
        "artefacts": rows,
    }
    return result, timed


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
            f"{cell(row['median_ns'], 11, '.1f', 1e6)}{cell(row['speed_against_fp32'], 8, '.2f')}"
            f"{cell(row['speed_against_as_is'], 9, '.2f')}{cell(row['peak_growth_bytes'], 9, '.0f', 1e6)}"
            + (f"  {row['error']}" if row["error"] else "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="+", help="run folders or presets")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="repeatable; onnx and android")
    parser.add_argument("--precision", action="append", help="only these; repeatable")
    parser.add_argument("--size", type=int, help="height and width in pixels: the run's, else 256")
    parser.add_argument("--frames", type=int, help="the run's, else 9 or the nearest length that there is")
    add_options(parser, "quantisation.json")
    options = parser.parse_args()
    options.target = options.target or ["onnx", "android"]
    report = Report(options.out, "models")
    for name in options.model:
        result, timed = measure(name, options)
        report.add(result, timed)
        show(result)
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
