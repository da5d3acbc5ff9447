"""Streamed and whole-clip decoding side by side: memory against clip length, speed, and what `fit` predicts.

    python benchmarks/streaming.py --preset ltx --height 704 --width 1280 --budget 1GB --frames 25 --frames 121

Per preset (random weights: neither memory nor time depends on them) and target: the streamed artefact that
`handheld export --stream --budget` makes, and the whole-clip artefact of each length whose predicted peak is at
most --most. Every figure of memory is the peak of a fresh process from its start, with the runtime and the weights;
frames are thrown away as they come. Throughput is compared at --ratio-size, where both fit, without a budget: each
run is a process of its own that warms up first, streamed and whole in turn; the ratio is the median over pairs.
`--quick` is a size for small machines. A chart of memory against clip length is drawn beside the JSON.

The JSON: schema_version, command, created_utc, versions, host, and per preset and target `plan`, `runs` (what,
frames, peak_rss_bytes, predicted_bytes, seconds, first_frame_seconds) and `ratio`. None is unknown, never zero.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
_MB = 1e6


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(_CHILDREN[sys.argv[2]](json.loads(sys.argv[3]))))
        return
    options = _options()
    from handheld.convert.pipeline import versions
    from handheld.runtime import files
    from handheld.runtime.host import describe_host

    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": shlex.join(["python", "benchmarks/streaming.py", *sys.argv[1:]]),
        "created_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": versions(),
        "host": asdict(describe_host()),
        "results": [],
    }
    for preset in options.preset:
        for target in options.target:
            place = len(report["results"])
            for result in measure(preset, target, options):
                # After each run: an interrupted benchmark keeps what it has.
                report["results"][place:] = [result]
                files.write_atomically(options.out, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
            show(result)
            draw(report["results"], options.out.with_suffix(".png"))
    print(f"\nwritten to {options.out} and {options.out.with_suffix('.png')}")


def measure(preset: str, target: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One preset on one target: what is known so far, after each run."""
    result: dict[str, Any] = {
        "preset": preset,
        "target": target,
        "height": options.height,
        "width": options.width,
        "budget_bytes": options.budget_bytes,
        "plan": None,
        "runs": [],
        "ratio": None,
    }
    size = {"height": options.height, "width": options.width}
    with tempfile.TemporaryDirectory(prefix="handheld-") as folder:
        bundle = str(Path(folder) / "streamed")
        made = _child(
            "export",
            bundle=bundle,
            preset=preset,
            target=target,
            frames=max(options.frames),
            budget_bytes=options.budget_bytes,
            **size,
        )
        result["plan"] = made["plan"]
        if made["plan"] is None:
            yield result
            return
        for frames in options.frames:
            _note(f"{preset} on {target}: streaming {frames} frames")
            run = _child("decode", bundle=bundle, frames=frames, threads=options.threads, repeat=1)
            result["runs"].append({"what": "streamed", "predicted_bytes": made["plan"]["peak_bytes"], **run})
            yield result
        for frames in options.frames:
            predicted = _child("predict", preset=preset, target=target, frames=frames, **size)["peak_bytes"]
            run = {"frames": frames, "peak_rss_bytes": None}
            if predicted <= options.most_bytes:
                _note(f"{preset} on {target}: the whole clip of {frames} frames")
                bundle = str(Path(folder) / f"whole-{frames}")
                _child(
                    "export", bundle=bundle, preset=preset, target=target, frames=frames, budget_bytes=None, **size
                )
                run = _child("decode", bundle=bundle, frames=frames, threads=options.threads, repeat=1)
            result["runs"].append({"what": "whole clip", "predicted_bytes": predicted, **run})
            yield result
        if options.rounds:
            result["ratio"] = _ratio(preset, target, Path(folder), options)
            yield result


def _ratio(preset: str, target: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Throughput of streaming against whole-clip decoding, where both fit."""
    side, frames = options.ratio_size, options.ratio_frames
    bundles = {}
    for what, budget in (("streamed", sys.maxsize), ("whole clip", None)):
        bundles[what] = str(folder / f"ratio-{what}")
        _child(
            "export",
            bundle=bundles[what],
            preset=preset,
            target=target,
            frames=frames,
            budget_bytes=budget,
            height=side,
            width=side,
        )
    seconds: dict[str, list[float]] = {what: [] for what in bundles}
    for turn in range(options.rounds):
        for what in list(bundles)[:: 1 if turn % 2 else -1]:
            _note(f"{preset} on {target}: {what} at {side}x{side}, round {turn + 1}")
            run = _child("decode", bundle=bundles[what], frames=frames, threads=options.threads, repeat=3)
            seconds[what].append(run["seconds"])
    pairs = [whole / streamed for whole, streamed in zip(seconds["whole clip"], seconds["streamed"])]
    fps = {what: frames / statistics.median(samples) for what, samples in seconds.items()}
    return {
        "size": side,
        "frames": frames,
        "seconds": seconds,
        "fps": fps,
        "median_of_pairs": statistics.median(pairs),
    }


# What runs in processes of its own.


def _export(asked: dict[str, Any]) -> dict[str, Any]:
    """Export a bundle: streamed within a budget, or for the whole clip where the budget is None."""
    import sys

    from handheld.convert import TARGETS, export
    from handheld.convert.streaming import default_cuts
    from handheld.convert.streaming.fit import fit
    from handheld.sources import open_source

    source = open_source(asked["preset"])
    latents, _ = source.example(asked["frames"], asked["height"], asked["width"])
    target = TARGETS[asked["target"]]
    cuts = plan = None
    if asked["budget_bytes"] == sys.maxsize:
        cuts = default_cuts(source.model, latents.shape[2])
    elif asked["budget_bytes"] is not None:
        found = fit(source.model, tuple(latents.shape), target, asked["budget_bytes"])
        if found.proposal is None:
            return {"plan": None}
        cuts, plan = found.proposal.cuts, found.proposal.to_json()
        latents = latents[:, :, :1]  # the golden output is made in eager mode: of one latent frame
    export(
        source.model,
        latents,
        asked["bundle"],
        targets=[target],
        stream=cuts,
        name=asked["preset"],
        provenance=source.provenance,
    )
    return {"plan": plan}


def _predict(asked: dict[str, Any]) -> dict[str, Any]:
    """What `handheld fit` says of the whole clip."""
    from handheld.convert import TARGETS
    from handheld.convert.streaming.fit import whole_clip_bytes
    from handheld.models import TurboVAEDecoder

    model = TurboVAEDecoder.from_preset(asked["preset"])
    shape = model.spec.latent_shape(frames=asked["frames"], height=asked["height"], width=asked["width"])
    return {"peak_bytes": whole_clip_bytes(model, shape, TARGETS[asked["target"]])}


def _decode(asked: dict[str, Any]) -> dict[str, Any]:
    """Decode a clip of random latents; the fastest of `repeat` runs, after one to warm up if there are several."""
    import numpy as np

    from handheld.runtime import host
    from handheld.runtime.bundle import read_bundle
    from handheld.runtime.session import open_session

    bundle = read_bundle(asked["bundle"])
    (artifact,) = bundle.artifacts
    given, made = bundle.manifest.inputs[0], bundle.manifest.outputs[0]
    frames, shape = asked["frames"], given.shape
    per_latent = 1
    if artifact.stream is not None:
        while artifact.stream.length(per_latent) < frames:
            per_latent += 1
        shape = (*shape[:2], per_latent, *shape[3:])
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)
    seconds, first = [], None
    with open_session(bundle, artifact, asked["threads"]) as session:
        for _ in range(asked["repeat"] + (asked["repeat"] > 1)):
            start = time.perf_counter()
            count = 0
            if artifact.stream is not None:
                for piece in session.stream(latents):
                    first = first or time.perf_counter() - start
                    count += piece.shape[2]
            else:
                count = session.run({given.name: latents})[made.name].shape[2]
                first = time.perf_counter() - start
            seconds.append(time.perf_counter() - start)
    assert count == frames, f"{count} frames came of {frames}"
    return {
        "frames": frames,
        "peak_rss_bytes": host.peak_rss_bytes(),
        "seconds": min(seconds[-asked["repeat"] :]),
        "first_frame_seconds": first,
    }


_CHILDREN = {"export": _export, "predict": _predict, "decode": _decode}


def _child(what: str, **asked: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", what, json.dumps(asked)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{what} {asked} failed with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def show(result: dict[str, Any]) -> None:
    """A table on stdout."""
    size = f"{result['height']}x{result['width']}"
    print(f"\n{result['preset']} on {result['target']}, {size}, budget {result['budget_bytes'] / _MB:.0f} MB")
    if result["plan"] is None:
        print("nothing fits that budget")
        return
    print(f"{'':<14}{'frames':>7}{'peak, MB':>10}{'predicted':>11}{'error':>8}{'fps':>8}{'first frame, s':>16}")
    for run in result["runs"]:
        peak = run["peak_rss_bytes"]
        if peak is None:
            print(f"{run['what']:<14}{run['frames']:>7}{'-':>10}{run['predicted_bytes'] / _MB:>11.0f}")
            continue
        error = run["predicted_bytes"] / peak - 1
        fps = run["frames"] / run["seconds"]
        print(
            f"{run['what']:<14}{run['frames']:>7}{peak / _MB:>10.0f}{run['predicted_bytes'] / _MB:>11.0f}"
            f"{error:>8.1%}{fps:>8.2f}{run['first_frame_seconds']:>16.1f}"
        )
    if ratio := result["ratio"]:
        print(
            f"throughput at {ratio['size']}x{ratio['size']}x{ratio['frames']}: streamed is "
            f"{ratio['median_of_pairs']:.2f} of whole clip"
        )


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Memory against clip length: measured solid, predicted dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for index, result in enumerate(results):
        for what, marker in (("streamed", "o"), ("whole clip", "s")):
            runs = [run for run in result["runs"] if run["what"] == what]
            if not runs:
                continue
            label = f"{result['preset']} {result['target']}, {what}"
            measured = [run for run in runs if run["peak_rss_bytes"] is not None]
            colour = f"C{2 * index + (what != 'streamed')}"
            axes.plot(
                [run["frames"] for run in measured],
                [run["peak_rss_bytes"] / _MB for run in measured],
                marker=marker,
                color=colour,
                label=label,
            )
            axes.plot(
                [run["frames"] for run in runs],
                [run["predicted_bytes"] / _MB for run in runs],
                linestyle="--",
                color=colour,
                alpha=0.6,
            )
    axes.set_xlabel("frames of the clip")
    axes.set_ylabel("peak memory of the process, MB (dashed: predicted)")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    from handheld.cli.options import bytes_of

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", action="append", help="repeatable; default ltx")
    parser.add_argument("--target", action="append", choices=["onnx", "android"], help="repeatable; default onnx")
    parser.add_argument("--height", type=int, default=704)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--frames", action="append", type=int, help="repeatable; default 25 and 121")
    parser.add_argument("--budget", default="1GB")
    parser.add_argument("--most", default="8GB", help="largest whole clip to run, by prediction")
    parser.add_argument("--ratio-size", type=int, default=256)
    parser.add_argument("--ratio-frames", type=int, default=33)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison of throughput; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="ltx at 256x256 within 450MB, 9 and 25 frames")
    parser.add_argument("--out", type=Path, default=Path("streaming.json"))
    options = parser.parse_args()
    if options.quick:
        options.height = options.width = 256
        options.budget, options.rounds, options.ratio_frames = "450MB", min(options.rounds, 1), 17
        options.frames = options.frames or [9, 25]
    options.preset = options.preset or ["ltx"]
    options.target = options.target or ["onnx"]
    options.frames = options.frames or [25, 121]
    options.budget_bytes, options.most_bytes = bytes_of(options.budget), bytes_of(options.most)
    return options


if __name__ == "__main__":
    main()
