"""Decoders lowered as they are against lowered by us: the same weights and latents, interleaved, one process each.

    python benchmarks/lowering.py --preset ltx --preset tiny --out lowering.json
    python benchmarks/lowering.py --preset ltx --executorch
    python benchmarks/lowering.py --all --append --out benchmarks/families.json

`--all` takes every preset and each teacher's decoder (`teacher:NAME`, as its class is by default). Weights are
random: speed and memory do not depend on them. Every variant is lowered from one model and one example,
and measured as `handheld profile` measures: a process each, one run at a time in turn, new processes every round.
Large models are measured with fewer runs, so that a model takes about `--seconds`.
Ratios are medians of pairs of runs against `as is`: above 1 is faster. Memory is the peak over the process with
its runtime loaded, from before the model loads, under our session's options, which spare memory; `--defaults` gives
the as-is export under onnxruntime's own options too. The difference is the largest from the eager fp32 output.
Delegates and ops outside of them are those of our Android artefact, lowered at 64x64.

The JSON is written after each model; `--append` keeps what it has and leaves out the models that are in it. It
holds schema_version, command, created_utc, versions, device, settings of the last model, and per model its clip,
its settings (repeat, warmup, rounds, threads), `android` (delegates, ops_outside), `holds_3d_convolutions`,
`faults` of the rule (empty where it holds) and, per variant, `rewrites` (how often each applied), `multiply_adds`
of its convolutions and all samples `latency_ns`, a list per round. None is unknown, never zero.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, replace
from typing import Any

import torch
from families_table import table
from side_by_side import AS_IS, Report, add_options, cell, exported, measured, note

from handheld.convert import TARGETS
from handheld.convert.graph.capture import capture
from handheld.convert.graph.nodes import is_call, shape_of
from handheld.convert.graph.ops import CONVOLUTIONS
from handheld.convert.target import Target
from handheld.models import FAMILIES
from handheld.models.teachers import TEACHERS
from handheld.models.teachers._diffusers import vae_class
from handheld.runtime.bundle import Bundle
from handheld.runtime.profile import Profile, Subject, profile
from handheld.runtime.session.ort import MODEL
from handheld.sources import Source, open_source

_MEGA = 1e6

# Of times and of memory, from one run of the benchmark to another.
_NOISE = 0.02

# Whether an op is delegated does not depend on height and width, and lowering small ones runs the model faster.
_ANDROID_SIZE = 64


def variants(executorch: bool) -> dict[str, Target]:
    """What is measured, the reference first. The as-is export has no rewrites; ExecuTorch cannot run it."""
    onnx = TARGETS["onnx"]
    plain = replace(onnx.precision("fp32"), rewrites=())
    found = {AS_IS: replace(onnx, precisions={"fp32": plain}), "onnx": onnx}
    return {**found, "android": TARGETS["android"]} if executorch else found


def opened(name: str) -> Source:
    """A preset, or with `teacher:` before its name a teacher's decoder, of random weights."""
    kind, _, teacher = name.rpartition(":")
    if not kind:
        return open_source(name)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        vae_class(TEACHERS[teacher].diffusers_class)().save_pretrained(folder)
        return open_source(folder, teacher=teacher)


def measure(name: str, targets: dict[str, Target], options: argparse.Namespace) -> tuple[dict[str, Any], Profile]:
    """One model: the JSON of it, and the profile that it comes from."""
    source = opened(name)
    latents, _ = source.example(options.frames, options.size, options.size)
    with tempfile.TemporaryDirectory() as folder:
        android, holds_3d = lowered_for_android(source, options, folder) if options.android else (None, None)
        subjects = [exported(label, source, latents, folder, target) for label, target in targets.items()]
        default_bytes = default_peak_growth_bytes(subjects[0].bundle, options.threads) if options.defaults else None
        timed = measured(subjects, fitting(subjects, options))
    rows = [
        {
            "variant": found.label,
            "runtime": found.runtime,
            "runtime_version": found.runtime_version,
            "rewrites": {entry.name: entry.applied for entry in subject.artifact.rewrites if entry.applied},
            "multiply_adds": subject.artifact.settings["rewritten"]["multiply_adds"],
            "delegation": subject.artifact.delegation,
            "median_ns": found.latency.median_ns if found.latency else None,
            "speedup": speedup.median_of_pairs if (speedup := timed.speedup(found)) else None,
            "max_abs_error": max(one.max_abs_error for one in found.parity) if found.parity else None,
            "peak_growth_bytes": found.peak_growth_bytes,
            "size_bytes": found.size_bytes,
            "latency_ns": [one.latency_ns for one in found.rounds],
            "error": found.error,
        }
        for subject, found in zip(subjects, timed.subjects)
    ]
    result = {
        "preset": name,
        "latents": list(latents.shape),
        "frames": list(subjects[0].bundle.manifest.outputs[0].shape),
        "settings": asdict(timed.settings),
        "holds_3d_convolutions": holds_3d,
        "android": android,
        "as_is_default_session_peak_growth_bytes": default_bytes,
        "variants": rows,
    }
    return {**result, "faults": faults(result)}, timed


def fitting(subjects: list[Subject], options: argparse.Namespace) -> argparse.Namespace:
    """The options, with as many runs as fit in `--seconds`; one of each, where one takes that long."""
    once = profile(subjects, repeat=1, warmup=0, rounds=1, threads=options.threads)
    turn = sum(found.latency.median_ns for found in once.subjects if found.latency) / 1e9
    most = options.rounds * (options.warmup + options.repeat)
    turns = min(most, int(options.seconds / turn)) if turn else most
    rounds = options.rounds if turns >= 3 * options.rounds else 1
    warmup = min(options.warmup, max(0, turns - 1))
    repeat = max(1, turns // rounds - warmup)
    return argparse.Namespace(**{**vars(options), "rounds": rounds, "warmup": warmup, "repeat": repeat})


def lowered_for_android(source: Source, options: argparse.Namespace, folder: str) -> tuple[dict[str, Any], bool]:
    """Delegates of our Android artefact and ops outside of them; whether the model convolves in time."""
    latents, _ = source.example(options.frames, _ANDROID_SIZE, _ANDROID_SIZE)
    convolves = any(
        is_call(node, *CONVOLUTIONS) and len(kernel := shape_of(node.args[1])) == 5 and kernel[2] > 1
        for node in capture(source.model, (latents,)).graph.nodes
    )
    found = exported("android-small", source, latents, folder, TARGETS["android"]).artifact.delegation or {}
    return {"delegates": found["delegates"], "ops_outside": found["ops_outside"]}, convolves


def faults(result: dict[str, Any]) -> list[str]:
    """What breaks the rule: never slower, 1.3 times as fast with 3D convolutions, close, in no more memory."""
    rows = {row["variant"]: row for row in result["variants"]}
    as_is, ours = rows[AS_IS], rows.get("onnx")
    if ours is None:
        return []
    if ours["error"] or as_is["error"]:
        return [ours["error"] or as_is["error"]]
    wanted = 1.3 if result["holds_3d_convolutions"] else 1.0
    found = []
    if ours["speedup"] < wanted * (1 - _NOISE):
        found.append(f"{ours['speedup']:.2f} times the speed, {wanted} wanted")
    if ours["max_abs_error"] >= 1e-3:
        found.append(f"differs by {ours['max_abs_error']:.1e}")
    if ours["peak_growth_bytes"] > as_is["peak_growth_bytes"] * (1 + _NOISE):
        peaks = [row["peak_growth_bytes"] / _MEGA for row in (ours, as_is)]
        found.append(f"peak {peaks[0]:.0f} MB against {peaks[1]:.0f} MB")
    return found


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
    if default := result["as_is_default_session_peak_growth_bytes"]:
        print(f"{AS_IS} under onnxruntime's default options: peak {default / _MEGA:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    teachers = [f"teacher:{name}" for name in ("ltx", "hunyuan", "cogvideox", "wan")]
    names = [*FAMILIES.presets, *teachers]
    parser.add_argument("--preset", action="append", choices=names, help="repeatable; default ltx")
    parser.add_argument("--all", action="store_true", help="every preset and teacher, Android's delegates too")
    parser.add_argument("--append", action="store_true", help="keep the results that --out has, and go on")
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--frames", type=int, help="default: 9, or the nearest length that the preset has")
    parser.add_argument("--seconds", type=float, default=30.0, help="for the timed runs of one model, about")
    parser.add_argument("--android", action="store_true", help="lower for Android too, and count delegates")
    parser.add_argument("--defaults", action="store_true", help="as-is memory under onnxruntime's defaults too")
    parser.add_argument("--executorch", action="store_true", help="our ExecuTorch artefacts too")
    parser.add_argument("--variant", action="append", help="only these besides as-is; repeatable")
    add_options(parser, "lowering.json")
    options = parser.parse_args()
    options.android |= options.all
    targets = variants(options.executorch)
    if options.variant:
        if unknown := sorted(set(options.variant) - set(targets)):
            parser.error(f"no variant {', '.join(unknown)}; there are: {', '.join(targets)}")
        targets = {label: target for label, target in targets.items() if label in {AS_IS, *options.variant}}
    report = Report(options.out, "presets", append=options.append)
    done = {result["preset"] for result in report.results}
    wanted = names if options.all else options.preset or ["ltx"]
    for name in [name for name in wanted if name not in done]:
        start = time.perf_counter()
        try:
            result, timed = measure(name, targets, options)
        except Exception:  # the other models are measured all the same
            note(f"{name} was not measured:\n{traceback.format_exc()}")
            continue
        report.add(result, timed)
        show(result)
        note(f"{name}: {time.perf_counter() - start:.0f} seconds")
    print("\n" + table(report.results))
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
