"""handheld fit"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from . import options
from .console import note, say, size, status, table

if TYPE_CHECKING:
    from handheld.convert.streaming.fit import Fit, Proposal
    from handheld.convert.streaming.overheads import Overhead

EPILOG = (
    "Example: [dim]handheld fit ltx --height 704 --width 1280 --frames 121 --target onnx --budget 1GB[/dim]. Exits "
    "with status 1 if nothing fits."
)


def run(
    source: options.Source,
    target: Annotated[
        list[str],
        typer.Option("--target", "-t", help="onnx or android; repeatable.", show_default=False),
    ],
    budget: options.Budget,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    precision: options.Precision = None,
    json_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--json", help="Write the whole result to this file.", show_default=False),
    ] = None,
    config: options.Config = None,
    subfolder: options.Subfolder = None,
    causal: options.Causal = False,
    seed: options.Seed = 0,
) -> None:
    """Say whether a decoder fits a memory budget, and how to cut it so that it does.

    Computes, before any export, weights and activations of each stage and the peak memory of a process that decodes
    the whole clip or streams it, and proposes the fastest way to stream within the budget: cuts, chunks, passes and
    strips, as handheld export --stream --budget makes them. Runs nothing: what a runtime takes beside a model's own
    memory was measured.
    """
    import json

    from handheld.convert import resolve_targets
    from handheld.convert.streaming.fit import fit
    from handheld.runtime.files import write_atomically
    from handheld.sources import open_source

    budget_bytes = options.bytes_of(budget)
    targets = resolve_targets(target, precision, installed=False)
    with status(f"Loading {source}"):
        opened = open_source(source, config=config, subfolder=subfolder, causal=causal, seed=seed)
    latents, _ = opened.example(frames, height, width)
    found = []
    for wanted in targets:
        with status(f"Planning for {wanted.name}"):
            result = fit(opened.model, tuple(latents.shape), wanted, budget_bytes, precision)
        _show(result, f"{opened.name}, {opened.describe(latents)}")
        found.append(result)
    if json_file is not None:
        whole = {"model": opened.name, "latents": list(latents.shape), "targets": [f.to_json() for f in found]}
        write_atomically(json_file, (json.dumps(whole, indent=1) + "\n").encode())
    if any(min(f.whole_bytes, (f.proposal or f.default).peak_bytes) > budget_bytes for f in found):
        raise typer.Exit(1)


def _show(found: Fit, clip: str) -> None:
    name = f"{found.target}, {found.precision}"
    table(
        f"{name}: {clip}, from the graph",
        ["stage", "weights", "activations, whole clip", "states, streamed"],
        [[s.name, size(s.weight_bytes), size(s.whole_bytes), size(s.state_bytes)] for s in found.stages],
    )
    verdict = _verdict(found, found.whole_bytes)
    ways = [["whole clip", *["–"] * 4, size(found.whole_bytes), "–", "1.00x", "–", verdict]]
    for label, way in (("streamed, no budget", found.default), ("streamed, proposed", found.proposal)):
        if way is not None:
            ways.append([label, *_way(way, found), _verdict(found, way.peak_bytes)])
    table(
        f"{name}: peak memory of the process, predicted",
        [
            "",
            "passes",
            "strips",
            "segments",
            "largest chunk",
            "peak",
            "temporary files",
            "multiply-adds",
            "around strips",
            f"{size(found.budget_bytes)}",
        ],
        ways,
    )
    if found.proposal is None:
        say(f"{name}: nothing fits {size(found.budget_bytes)}. Take a larger budget, a smaller frame or fp16.")
        return
    _show_plan(found.proposal, found.overhead, name)
    note(f"Beside the graph's own memory, {found.target}'s runtime: {found.overhead.source}")


def _verdict(found: Fit, peak_bytes: int) -> str:
    return "fits" if peak_bytes <= found.budget_bytes else "too large"


def _way(way: Proposal, found: Fit) -> list[str]:
    passes = way.size.plan.passes
    return [
        str(len(passes)),
        str(max(len(part.strips) for part in passes)),
        str(sum(len(part.segments) for part in passes)),
        str(max(segment.chunk for part in passes for segment in part.segments)),
        size(way.peak_bytes),
        size(way.size.temporary_bytes) if way.size.temporary_bytes else "–",
        f"{way.size.multiply_adds / found.whole_multiply_adds:.2f}x",
        f"{way.size.recomputed / way.size.multiply_adds:.0%}" if way.size.recomputed else "–",
    ]


def _show_plan(way: Proposal, overhead: Overhead, name: str) -> None:
    rows = []
    for index, (part, peak) in enumerate(zip(way.size.plan.passes, way.size.peak_bytes)):
        for segment in part.segments:
            first, last = segment.units[0], segment.units[-1]
            units = first if first == last else f"{first} to {last}"
            held = size(overhead.inner_bytes(way.size.programs[segment.program]))
            rows.append([str(index), str(len(part.strips)), units, str(segment.chunk), held, size(peak)])
    table(
        f"{name}: the proposed plan",
        ["pass", "strips", "segment", "chunk", "activations", "peak of the pass"],
        rows,
    )
