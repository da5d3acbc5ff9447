"""The released architecture exported as it is, against ours: time, memory, size and difference, side by side.

    python benchmarks/lowering.py --preset ltx --preset hunyuan --size 256 --frames 9 --out lowering.json

Per preset (random weights: time does not depend on them), every variant is lowered from one model and one example,
and measured as `handheld profile` measures: a process each, one run at a time in turn, new processes every round.
Ratios are medians of pairs of runs against `as is`: above 1 is faster. Memory is the peak over the process with
its runtime loaded, from before the model loads; our sessions ask onnxruntime to spare memory, so the as-is export
is also given under onnxruntime's own defaults, as who exports it would run it. The difference is the largest from
the eager fp32 output.

The JSON: schema_version, command, created_utc, versions, device, settings (repeat, warmup, rounds, threads), and
per preset its clip and, per variant, `rewrites` (how often each applied), `multiply_adds` of its convolutions and
all samples `latency_ns`, a list per round. None is unknown, never zero.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import Any

from side_by_side import AS_IS, Report, add_options, cell, exported, measured

from handheld.convert import TARGETS
from handheld.convert.target import Target
from handheld.models import FAMILIES
from handheld.runtime.bundle import Bundle
from handheld.runtime.profile import Profile
from handheld.runtime.session.ort import MODEL
from handheld.runtime.verify import verify
from handheld.sources import open_source

_MEGA = 1e6


def variants(executorch: bool) -> dict[str, Target]:
    """What is measured, the reference first. The as-is export has no rewrites; ExecuTorch cannot run it."""
    onnx = TARGETS["onnx"]
    plain = replace(onnx.precision("fp32"), rewrites=())
    found = {AS_IS: replace(onnx, precisions={"fp32": plain}), "onnx": onnx}
    return {**found, "android": TARGETS["android"]} if executorch else found


def measure(preset: str, targets: dict[str, Target], options: argparse.Namespace) -> tuple[dict[str, Any], Profile]:
    """One preset: the JSON of it, and the profile that it comes from."""
    source = open_source(preset)
    latents, _ = source.example(options.frames, options.size, options.size)
    with tempfile.TemporaryDirectory() as folder:
        subjects = [exported(label, source, latents, folder, target) for label, target in targets.items()]
        errors = [verify(subject.bundle)[0].max_abs_error for subject in subjects]
        default_bytes = default_peak_growth_bytes(subjects[0].bundle, options.threads)
        timed = measured(subjects, options)
    rows = [
        {
            "variant": found.label,
            "runtime": found.runtime,
            "runtime_version": found.runtime_version,
            "rewrites": {entry.name: entry.applied for entry in subject.artifact.rewrites},
            "multiply_adds": subject.artifact.settings["rewritten"]["multiply_adds"],
            "delegation": subject.artifact.delegation,
            "median_ns": found.latency.median_ns if found.latency else None,
            "speedup": speedup.median_of_pairs if (speedup := timed.speedup(found)) else None,
            "max_abs_error": error,
            "peak_growth_bytes": found.peak_growth_bytes,
            "size_bytes": found.size_bytes,
            "latency_ns": [one.latency_ns for one in found.rounds],
            "error": found.error,
        }
        for subject, error, found in zip(subjects, errors, timed.subjects)
    ]
    frames = list(subjects[0].bundle.manifest.outputs[0].shape)
    result = {
        "preset": preset,
        "latents": list(latents.shape),
        "frames": frames,
        "as_is_default_session_peak_growth_bytes": default_bytes,
        "variants": rows,
    }
    return result, timed


_DEFAULT_SESSION = """
import sys
import numpy, onnxruntime
from handheld.runtime import host
path, threads = sys.argv[1], int(sys.argv[2])
host.forget_peak_rss()
before = host.rss_bytes()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()
latents = numpy.zeros(given.shape, numpy.float32)
for _ in range(3):
    session.run(None, {given.name: latents})
print(host.peak_rss_bytes() - before)
"""


def default_peak_growth_bytes(bundle: Bundle, threads: int) -> int:
    """Peak memory of a bundle's ONNX artefact under onnxruntime's default options, in a process of its own."""
    path = bundle.locate(bundle.artifacts[0].path) / MODEL
    command = [sys.executable, "-P", "-c", _DEFAULT_SESSION, str(path), str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def show(result: dict[str, Any]) -> None:
    """Print one preset as a table."""
    print(f"\n{result['preset']}, frames {'x'.join(map(str, result['frames']))}")
    heads = (("median ms", 10), ("speed-up", 10), ("G mult-add", 12), ("difference", 12), ("peak MB", 9), ("MB", 7))
    print(f"{'variant':<16}" + "".join(f"{head:>{width}}" for head, width in heads))
    for row in result["variants"]:
        cells = (
            cell(row["median_ns"], 10, ".1f", _MEGA),
            cell(row["speedup"], 10, ".2f"),
            cell(row["multiply_adds"], 12, ".1f", 1e9),
            cell(row["max_abs_error"], 12, ".1e"),
            cell(row["peak_growth_bytes"], 9, ".0f", _MEGA),
            cell(row["size_bytes"], 7, ".0f", _MEGA),
        )
        print(f"{row['variant']:<16}{''.join(cells)}" + (f"  {row['error']}" if row["error"] else ""))
    default = result["as_is_default_session_peak_growth_bytes"] / _MEGA
    print(f"{AS_IS} under onnxruntime's default options: peak {default:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", action="append", choices=list(FAMILIES.presets), help="repeatable; default ltx")
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--frames", type=int, help="default: 9, or the nearest length that the preset has")
    parser.add_argument("--executorch", action="store_true", help="our ExecuTorch artefacts too")
    parser.add_argument("--variant", action="append", help="only these besides as-is; repeatable")
    add_options(parser, "lowering.json")
    options = parser.parse_args()
    targets = variants(options.executorch)
    if options.variant:
        if unknown := sorted(set(options.variant) - set(targets)):
            parser.error(f"no variant {', '.join(unknown)}; there are: {', '.join(targets)}")
        targets = {label: target for label, target in targets.items() if label in {AS_IS, *options.variant}}
    report = Report(options.out, "presets")
    for preset in options.preset or ["ltx"]:
        result, timed = measure(preset, targets, options)
        report.add(result, timed)
        show(result)
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
