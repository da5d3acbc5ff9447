"""handheld check"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from . import options
from .console import note, say, size, status, table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from handheld.convert.graph.legality import Costs, Finding, Report
    from handheld.convert.graph.limits import Limit
    from handheld.convert.target import Target

EPILOG = (
    "Example: [dim]handheld check hunyuan --target android --height 720 --width 1280 --frames 25[/dim]. Exits with "
    "status 1 if something is left that a target does not take."
)


def run(
    source: options.Source,
    target: Annotated[
        list[str],
        typer.Option("--target", "-t", help="As for handheld export; repeatable.", show_default=False),
    ],
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    precision: options.Precision = None,
    json_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--json", help="Write the whole report to this file.", show_default=False),
    ] = None,
    values: Annotated[
        bool,
        typer.Option(
            "--values",
            help="For fp16, also run the rewritten graph on the calibration latents and name the ops that "
            "leave its range.",
        ),
    ] = False,
    config: options.Config = None,
    subfolder: options.Subfolder = None,
    causal: options.Causal = False,
    seed: options.Seed = 0,
) -> None:
    """List what a target does not take of a decoder, and what repairs it.

    Looks at the exported graph, before any lowering: each op that the target's runtime refuses, leaves outside of
    its delegate or runs slowly, the module it comes from, the rewrite that repairs it, and what that changes in
    multiply-adds, bytes and peak activation memory. Runs nothing and needs no runtime: large clips take seconds.
    """
    import json

    from handheld.convert import check, resolve_targets

    targets = resolve_targets(target, precision, installed=False)
    from handheld.runtime.files import write_atomically
    from handheld.sources import open_source

    with status(f"Loading {source}"):
        opened = open_source(source, config=config, subfolder=subfolder, causal=causal, seed=seed)
    latents, _ = opened.example(frames, height, width)
    note(f"{opened.name}: latents {'x'.join(map(str, latents.shape))} to {opened.describe(latents)}")
    reports = []
    for wanted in targets:
        with status(f"Checking for {wanted.name}"):
            report = check(opened.model, latents, wanted, precision)
        _show(report)
        if values:
            _show_beyond_fp16(wanted, report.precision, opened.model, opened.calibration(latents)[0])
        reports.append(report)
    if json_file is not None:
        whole = {"model": opened.name, "latents": list(latents.shape), "reports": [r.to_json() for r in reports]}
        write_atomically(json_file, (json.dumps(whole, indent=1) + "\n").encode())
    if any(report.illegal for report in reports):
        raise typer.Exit(1)


def _show_beyond_fp16(target: Target, precision: str, model: nn.Module, clips: Sequence[Tensor]) -> None:
    import torch

    from handheld.convert.graph.capture import capture
    from handheld.convert.graph.ranges import beyond_fp16
    from handheld.convert.graph.rewrite import apply

    chosen = target.precision(precision)
    if chosen.dtype != torch.float16:
        say(f"{target.name}, {precision}: not fp16, no range to leave.")
        return
    with status(f"Running the graph for {target.name}"):
        graph = capture(model, (clips[0],))
        apply(graph, chosen.rewrites)
        found = beyond_fp16(graph, ((clip,) for clip in clips))
    for one in found:
        say(f"{target.name}: beyond or near the end of fp16's range (65504): {one}")
    if not found:
        say(f"{target.name}, {precision}: no result comes within a factor of two of the end of fp16's range.")


def _show(report: Report) -> None:
    name = f"{report.target}, {report.precision}"
    _table(f"{name}: as captured, not taken or taken badly", report.findings)
    if report.left:
        _table(f"{name}: left after the rewrites", report.left)
    before, after = report.captured, report.rewritten
    table(
        f"{name}: cost, from the graph",
        ["", "captured", "rewritten", "ratio"],
        [_cost_row(*row) for row in _costs(before, after)],
    )
    for which, costs in (("captured", before), ("rewritten", after)):
        peak = costs.peak
        where = f"{peak.op} {peak.node}" + (f" of {peak.module}" if peak.module else "")
        say(f"peak, {which}: at {where}")
    if report.illegal:
        say(f"NOT LEGAL: {len(report.illegal)} ops are left that {name} does not take.")
        return
    blocked = sum(finding.limit.blocks for finding in report.findings)
    some = [finding for finding in report.left if finding.limit.severity == "device"]
    slow = len(report.left) - len(some)
    if some:
        largest = max((finding.shape for finding in some), key=max)
        say(f"NOT ON EVERY DEVICE: {len(some)} ops, the largest gives {'x'.join(map(str, largest))}; see above.")
    say(
        f"{name}: {f'{blocked} ops that it does not take, all repaired' if blocked else 'takes every op'}"
        + (f"; {slow} of those that are left run slowly." if slow else ".")
    )


def _table(title: str, findings: Sequence[Finding]) -> None:
    """One row for each op, reason and repair; below it, the reasons and where they are known from."""
    groups: dict[tuple[str, str, str | None], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.op, finding.limit.reason, finding.repaired_by), []).append(finding)
    rows = []
    for (op, _, repaired_by), group in groups.items():
        first = group[0]
        shape = "x".join(map(str, first.shape))
        where = first.module or first.node
        rows.append([op, str(len(group)), first.limit.severity, repaired_by or "–", where, shape, first.dtype])
    table(title, ["op", "count", "severity", "repaired by", "first in", "shape", "dtype"], rows)
    ops: dict[Limit, dict[str, None]] = {}
    for finding in findings:
        ops.setdefault(finding.limit, {})[finding.op] = None
    for limit, names in ops.items():
        say(f"  {', '.join(names)}: {limit.reason} ({limit.source})")


def _costs(before: Costs, after: Costs) -> list[tuple[str, int, int, str]]:
    return [
        ("multiply-adds", before.multiply_adds, after.multiply_adds, "G"),
        ("weights", before.weight_bytes, after.weight_bytes, "MB"),
        ("activations read and written", before.activation_bytes, after.activation_bytes, "MB"),
        ("peak of activations", before.peak.size_bytes, after.peak.size_bytes, "MB"),
    ]


def _cost_row(name: str, before: int, after: int, unit: str) -> list[str]:
    shown = [f"{value / 1e9:.2f} G" if unit == "G" else size(value) for value in (before, after)]
    return [name, *shown, f"{after / before:.2f}" if before else "–"]
