"""handheld export"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from . import options
from .console import note, say, size, status, table

if TYPE_CHECKING:
    from torch import Tensor

    from handheld.convert import Step
    from handheld.convert.target import Target
    from handheld.runtime.bundle import Bundle
    from handheld.sources import Source

EPILOG = (
    "Examples: [dim]handheld export runs/first --target ios --target android --out bundle[/dim]  ·  "
    "[dim]handheld export ltx --target onnx --height 256 --width 256 --frames 9[/dim]"
)


def run(
    source: options.Source,
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            "-t",
            help="ios, ios16, ios18 (Core ML), ios-executorch (ExecuTorch with Core ML), android (ExecuTorch with "
            "XNNPACK), android-vulkan (ExecuTorch with Vulkan) or onnx; repeatable.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="Bundle folder to make.", show_default="SOURCE-bundle"),
    ] = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    precision: options.Precision = None,
    config: options.Config = None,
    subfolder: options.Subfolder = None,
    causal: options.Causal = False,
    seed: options.Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Lower a decoder to Core ML, ExecuTorch and ONNX.

    Rewrites the graph for each target, checks the rewritten graph against the model, lowers it, and writes a
    bundle: manifest, model files and golden tensors. The bundle appears at once and whole; an interrupted export
    leaves nothing.
    """
    from handheld.convert import resolve_targets

    targets = resolve_targets(target, precision)
    from handheld.sources import open_source

    with status(f"Loading {source}"):
        opened = open_source(source, config=config, subfolder=subfolder, causal=causal, seed=seed)
    latents, origin = opened.example(frames, height, width)
    bundle = out or Path(f"{Path(source).name}-bundle")
    export_and_show(opened, latents, origin, targets, precision, bundle, overwrite)


def export_and_show(
    opened: Source,
    latents: Tensor,
    origin: str,
    targets: Sequence[Target],
    precision: str | None,
    out: Path,
    overwrite: bool,
) -> Bundle:
    """Export a source, show what was done, and return the bundle."""
    from handheld.convert import export

    n, c, t, h, w = latents.shape
    spec = opened.spec
    note(
        f"{opened.name}: latents {n}x{c}x{t}x{h}x{w} to {spec.frames(t)} frames of "
        f"{h * spec.spatial}x{w * spec.spatial}; golden input: {origin}"
    )
    with status("Exporting") as spinner:

        def show(step: Step) -> None:
            text = f"{step.target + ': ' if step.target else ''}{step.doing}"
            if spinner is None:
                note(f"  {text}")
            else:
                spinner.update(text)

        bundle = export(
            opened.model,
            latents,
            out,
            targets=targets,
            precision=precision,
            name=opened.name,
            provenance={**opened.provenance, "golden_latents": origin},
            overwrite=overwrite,
            progress=show,
        )
    table(
        f"Bundle {bundle.path}",
        ["artefact", "runtime", "precision", "size", "rewritten", "delegates", "left outside", "seconds"],
        [
            [
                a.path,
                a.runtime,
                a.precision,
                size(a.size_bytes),
                str(sum(r.applied for r in a.rewrites)),
                str(a.delegation["delegates"]) if a.delegation else "–",
                str(sum(a.delegation["ops_outside"].values())) if a.delegation else "–",
                f"{a.lowering_seconds:.1f}",
            ]
            for a in bundle.artifacts
        ],
    )
    for artifact in bundle.artifacts:
        done = ", ".join(f"{r.name} {r.applied}" for r in artifact.rewrites if r.applied)
        say(f"{artifact.name}: {done}")
        for record in artifact.rewrites:
            for refusal in record.refused:
                say(f"  {record.name} refused {refusal.node} in {refusal.module}: {refusal.reason}")
    say(f"Next: handheld verify {bundle.path}")
    return bundle
