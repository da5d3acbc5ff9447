"""handheld export"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from . import options
from .console import note, say, size, status, table

if TYPE_CHECKING:
    from handheld.convert import Step
    from handheld.exporting import ExportPlan
    from handheld.runtime.bundle import Bundle
    from handheld.runtime.manifest import Artifact

EPILOG = (
    "Examples: [dim]handheld export runs/first --target ios --target android --out bundle[/dim]  ·  "
    "[dim]handheld export ltx --target onnx --height 256 --width 256 --frames 9[/dim]"
)


def run(
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            "-t",
            help="ios, ios16, ios18 (Core ML), ios27 (Core AI), ios-executorch (ExecuTorch with Core ML), android "
            "(ExecuTorch with XNNPACK), android-vulkan (ExecuTorch with Vulkan) or onnx; repeatable.",
            show_default=False,
        ),
    ],
    source: options.OptionalSource = None,
    teacher: options.Teacher = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="Bundle folder to make.", show_default="SOURCE-bundle"),
    ] = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    shape: options.Shape = None,
    precision: options.Precision = None,
    min_psnr: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="With --precision auto: lowest PSNR from the fp32 output, in dB.", show_default="40"),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Export for streaming: clips of any number of frames, in the memory of a few.",
        ),
    ] = False,
    chunk: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1,
            help="With --stream: frames of a call, at least; latent frames of one where the decoder is causal.",
            show_default="4, causal 1",
        ),
    ] = None,
    budget: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="With --stream and one target: memory of the process that decodes, such as 1.5GB; cuts as "
            "handheld fit proposes.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Real latents, from handheld encode, for the ranges of 8-bit activations and as golden input.",
            show_default="the run's held-out clips",
        ),
    ] = None,
    config: options.Config = None,
    subfolder: options.Subfolder = None,
    causal: options.Causal = False,
    seed: options.Seed = 0,
    costs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Cost table of your own, from handheld tune, to choose between lowerings by.",
            show_default="the one that comes with the target",
        ),
    ] = None,
    without: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Rewrite to leave out, as docs/rewrites.md names it; repeatable.", show_default=False),
    ] = None,
    pixels: Annotated[
        str,
        typer.Option(
            help="What frames come out as: float, in the decoder's value range; rgba8, interleaved 8-bit RGBA that "
            "an app shows as it is, made in the artefact."
        ),
    ] = "float",
    dynamic: Annotated[
        bool,
        typer.Option(
            "--dynamic",
            help="onnx only: one graph for any number of frames, height and width. It is exported as captured, for "
            "the rewrites need fixed sizes: slower than an artefact of fixed --shape.",
        ),
    ] = False,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate", help="Check each rewrite's result at each place as it is applied; a wrong one is named."
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what each layer was lowered to, from among what, and why.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Lower a decoder to Core ML, Core AI, ExecuTorch and ONNX.

    Rewrites the graph for each target, checks the rewritten graph against the model, lowers it, and writes a
    bundle: manifest, model files and golden tensors. The bundle appears at once and whole; an interrupted export
    leaves nothing.
    """
    from handheld.exporting import default_folder, plan_export

    with status(f"Loading {source or teacher}"):
        plan = plan_export(
            source,
            targets=target,
            precision=precision,
            min_psnr_db=min_psnr,
            frames=frames,
            height=height,
            width=width,
            shapes=shape or (),
            stream=stream,
            chunk=chunk,
            budget_bytes=options.bytes_of(budget) if budget is not None else None,
            calibration=calibration,
            costs=costs,
            config=config,
            subfolder=subfolder,
            causal=causal,
            seed=seed,
            teacher=teacher,
            without=without or (),
            pixels=pixels,
            dynamic=dynamic,
        )
    exported = export_and_show(plan, out or default_folder(plan.source.name), overwrite, validate=validate)
    if explain:
        for artifact in exported.artifacts:
            _explain(artifact)
    say(f"Next: handheld verify {exported.path}")


def export_and_show(plan: ExportPlan, out: Path, overwrite: bool, *, validate: bool = False) -> Bundle:
    """Run an export, show what was done, and return the bundle."""
    from handheld.convert.graph.ranges import texts as beyond_fp16_texts

    source = plan.source
    for latents, origin in plan.examples:
        shape = "x".join(map(str, latents.shape))
        note(f"{source.name}: latents {shape} to {source.describe(latents)}; golden input: {origin}")
    if plan.calibrated:
        note(f"Calibration: {plan.calibration_from}")
    with status("Exporting") as spinner:

        def show(step: Step) -> None:
            text = f"{step.target + ': ' if step.target else ''}{step.doing}"
            if spinner is None:
                note(f"  {text}")
            else:
                spinner.update(text)

        bundle = plan.run(out, overwrite=overwrite, validate=validate, progress=show)
    _show_bundle(bundle)
    if plan.min_psnr_db is not None:
        _show_trials(bundle)
    for artifact in bundle.artifacts:
        done = ", ".join(f"{r.name} {r.applied}" for r in artifact.rewrites if r.applied)
        if artifact.dynamic:
            done = (
                f"any {', '.join(artifact.dynamic)} of the latents from 2 on, as captured: the rewrites need fixed "
                "sizes, and none was applied"
            )
        say(f"{artifact.name}: {done or 'no rewrite applied'}")
        for record in artifact.rewrites:
            for refusal in record.refused:
                say(f"  {record.name} refused {refusal.node} in {refusal.module}: {refusal.reason}")
        for text in beyond_fp16_texts(artifact.settings):
            say(f"  {text}")
    return bundle


def _show_bundle(bundle: Bundle) -> None:
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


def _explain(artifact: Artifact) -> None:
    """What was chosen between, in each shape."""
    others = artifact.settings.get("other_shapes", {})
    for method in artifact.methods:
        shown = [asdict(record) for record in artifact.rewrites]
        if method.name in others:
            shown = others[method.name]["rewrites"]
        shape = f", latents {'x'.join(map(str, method.inputs[0]))}" if others else ""
        _explain_shape(artifact.name + shape, shown)
    say(f"  costs: {artifact.settings['costs']}")
    say("  Least share of the time plus 0.4 times the share of the weights wins: see docs/rewrites.md.")


def _explain_shape(name: str, rewrites: Sequence[Mapping[str, Any]]) -> None:
    """One table, from rewrites as the manifest has them; layers with the same options together."""
    groups: dict[str, list[str]] = {}
    rows = []
    reasons: dict[str, None] = {}
    for record in rewrites:
        for place in record["selected"]:
            groups.setdefault(json.dumps([record["name"], place["options"]]), []).append(place["module"])
    for key, modules in groups.items():
        chosen, choices = json.loads(key)
        more = f" and {len(modules) - 1} alike" if len(modules) > 1 else ""
        costed = [o for o in choices if o["relative_cost"] is not None]
        taken = ", ".join(
            f"{o['rewrite']} {o['relative_cost']:.2f} ({size(o['weight_bytes'])}"
            f"{', refused' if o['refused'] else ''})"
            for o in sorted(costed, key=lambda option: option["relative_cost"])
        )
        rows.append([modules[0] + more, chosen, taken])
        reasons |= dict.fromkeys(o["refused"] for o in costed if o["refused"])
    table(
        f"{name}: modelled time, 1 for one convolution per tap, and weights of each option",
        ["layer", "chosen", "options"],
        rows,
    )
    for reason in reasons:
        say(f"  refused, {reason}")


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
