"""handheld export"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .console import note, say, size, status, table
from .errors import CommandError

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
    source: Annotated[
        str,
        typer.Argument(
            help="A run folder, a preset with random weights (ltx, hunyuan, cogvideox, dc, tiny), a checkpoint "
            "(.safetensors, .pth, .ckpt), or a folder or hub id with config.json and weights.",
            show_default=False,
        ),
    ],
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            "-t",
            help="ios (Core ML), android (ExecuTorch with XNNPACK) or onnx; repeatable.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="Bundle folder to make.", show_default="SOURCE-bundle"),
    ] = None,
    height: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Frame height in pixels.", show_default="the run's, else 256"),
    ] = None,
    width: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Frame width in pixels.", show_default="the run's, else 256"),
    ] = None,
    frames: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Frames of the clip; lengths depend on the latent space.", show_default="the run's, else 9"
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32 or fp16; int8 on onnx and android; auto: for each target its smallest artefact that stays "
            "over --min-psnr."
        ),
    ] = "fp32",
    min_psnr: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="With --precision auto: lowest PSNR from the fp32 output, in dB.", show_default="40"),
    ] = None,
    calibration: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Real latents, from handheld encode, for the ranges of 8-bit activations and as golden input.",
            show_default="the run's held-out clips",
        ),
    ] = None,
    config: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Preset or JSON, for a checkpoint without config.json beside it.", show_default=False),
    ] = None,
    subfolder: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Folder inside SOURCE that holds the decoder.", show_default=False),
    ] = None,
    causal: Annotated[bool, typer.Option("--causal", help="The causal form of a preset.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of a preset's random weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Lower a decoder to Core ML, ExecuTorch and ONNX.

    Rewrites the graph for each target, checks the rewritten graph against the model, lowers it, and writes a
    bundle: manifest, model files and golden tensors. The bundle appears at once and whole; an interrupted export
    leaves nothing.
    """
    from handheld.convert import resolve_targets
    from handheld.convert.precision_auto import AUTO, DEFAULT_MIN_PSNR_DB

    if min_psnr is not None and precision != AUTO:
        raise CommandError(f"--min-psnr goes with --precision auto; --precision is {precision}.")
    floor = None
    if precision == AUTO:
        floor = DEFAULT_MIN_PSNR_DB if min_psnr is None else min_psnr
    targets = resolve_targets(target, "fp32" if floor is not None else precision)
    from handheld.sources import open_source

    with status(f"Loading {source}"):
        opened = open_source(source, config=config, subfolder=subfolder, causal=causal, seed=seed)
    if calibration:
        opened = opened.with_latents(calibration)
    latents, origin = opened.example(frames, height, width)
    if calibration and opened.held_out_name not in origin:
        raise CommandError(
            f"{calibration} holds latents of {_sizes(opened.held_out)}, smaller than the export's "
            f"{_sizes(latents)}: encode a larger clip, or export for the size of these."
        )
    bundle = out or Path(f"{Path(source).name}-bundle")
    export_and_show(opened, latents, origin, targets, precision, bundle, overwrite, min_psnr_db=floor)


def _sizes(latents: Tensor | None) -> str:
    """Time, height and width of latents."""
    return "x".join(map(str, latents.shape[2:])) if latents is not None else ""


def export_and_show(
    opened: Source,
    latents: Tensor,
    origin: str,
    targets: Sequence[Target],
    precision: str,
    out: Path,
    overwrite: bool,
    min_psnr_db: float | None = None,
) -> Bundle:
    """Export a source, show what was done, and return the bundle. `min_psnr_db` is for precision auto."""
    from handheld.convert import export, export_smallest

    n, c, t, h, w = latents.shape
    spec = opened.spec
    note(
        f"{opened.name}: latents {n}x{c}x{t}x{h}x{w} to {spec.frames(t)} frames of "
        f"{h * spec.spatial}x{w * spec.spatial}, {precision}; golden input: {origin}"
    )
    clips, what = opened.calibration(latents)
    calibrated = min_psnr_db is not None or any(t.precision(precision).calibrated for t in targets)
    if calibrated:
        note(f"Calibration: {what}")
    with status("Exporting") as spinner:

        def show(step: Step) -> None:
            text = f"{step.target + ': ' if step.target else ''}{step.doing}"
            if spinner is None:
                note(f"  {text}")
            else:
                spinner.update(text)

        how = {"precision": precision} if min_psnr_db is None else {"min_psnr_db": min_psnr_db}
        calibration = {"calibration_latents": what} if calibrated else {}
        bundle = (export if min_psnr_db is None else export_smallest)(
            opened.model,
            latents,
            out,
            targets=targets,
            **how,
            calibration=clips,
            name=opened.name,
            provenance={**opened.provenance, "golden_latents": origin, **calibration},
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
    if min_psnr_db is not None:
        _show_trials(bundle)
    for artifact in bundle.artifacts:
        done = ", ".join(f"{r.name} {r.applied}" for r in artifact.rewrites if r.applied)
        say(f"{artifact.name}: {done}")
        for record in artifact.rewrites:
            for refusal in record.refused:
                say(f"  {record.name} refused {refusal.node} in {refusal.module}: {refusal.reason}")
    say(f"Next: handheld verify {bundle.path}")
    return bundle


def _show_trials(bundle: Bundle) -> None:
    """The table behind each target's precision."""
    for artifact in bundle.artifacts:
        auto = artifact.settings["auto"]
        table(
            f"{artifact.name}: PSNR from the fp32 output, {auto['clips']} clips, floor {auto['min_psnr_db']:g} dB",
            ["precision", "size", "PSNR, dB", "kept", "why"],
            [
                [
                    trial["precision"],
                    "–" if trial["size_bytes"] is None else size(trial["size_bytes"]),
                    "–" if trial["psnr_db"] is None else f"{trial['psnr_db']:.1f}",
                    "yes" if trial["kept"] else "no",
                    trial["why"],
                ]
                for trial in auto["trials"]
            ],
        )
