"""handheld export"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from . import options
from .console import note, say, size, status, table
from .errors import CommandError

if TYPE_CHECKING:
    from torch import Tensor

    from handheld.convert import Step
    from handheld.convert.streaming import PassCut
    from handheld.convert.target import Target
    from handheld.runtime.bundle import Bundle
    from handheld.runtime.manifest import Artifact
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
            help="ios, ios16, ios18 (Core ML), ios27 (Core AI), ios-executorch (ExecuTorch with Core ML), android "
            "(ExecuTorch with XNNPACK), android-vulkan (ExecuTorch with Vulkan) or onnx; repeatable.",
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
    from handheld.convert import resolve_targets
    from handheld.convert.choice.costs import read_table
    from handheld.convert.precision.auto import AUTO, DEFAULT_MIN_PSNR_DB
    from handheld.convert.target import choose_by, leave_out

    if min_psnr is not None and precision != AUTO:
        raise CommandError(f"--min-psnr goes with --precision auto; --precision is {precision}.")
    if chunk is not None and not stream:
        raise CommandError(f"--chunk {chunk} goes with --stream.")
    budget_bytes = options.bytes_of(budget) if budget is not None else None
    if budget is not None and (not stream or len(target) > 1 or chunk is not None):
        raise CommandError(f"--budget {budget} goes with --stream and one target, and chooses the chunks itself.")
    if stream and precision == AUTO:
        raise CommandError("--precision auto does not go with --stream: name a precision.")
    sizes = _asked_sizes(shape, frames, height, width)
    floor = None
    if precision == AUTO:
        if len(sizes) > 1:
            raise CommandError("--precision auto chooses for one shape: name a precision, or give one --shape.")
        floor = DEFAULT_MIN_PSNR_DB if min_psnr is None else min_psnr
    targets = resolve_targets(target, "fp32" if floor is not None else precision)
    if costs:
        measured = read_table(costs)
        targets = choose_by(targets, measured)
    targets = leave_out(targets, without or ())
    from handheld.sources import open_source

    with status(f"Loading {source}"):
        opened = open_source(source, config=config, subfolder=subfolder, causal=causal, seed=seed)
    if calibration:
        opened = opened.with_latents(calibration)
    examples = [opened.example(*size) for size in sizes]
    for latents, origin in examples:
        if calibration and opened.held_out_name not in origin:
            raise CommandError(
                f"{calibration} holds latents of {_sizes(opened.held_out)}, smaller than the export's "
                f"{_sizes(latents)}: encode a larger clip, or export for the size of these."
            )
    # The name of the folder itself, for a source such as `.`.
    bundle = out or Path(f"{Path(source).name or Path(source).resolve().name}-bundle")
    (latents, origin), *more = examples
    cuts = None
    if stream:
        from handheld.convert.streaming import default_cuts

        cuts = default_cuts(opened.model, latents.shape[2], chunk or 1)
        if budget_bytes is not None:
            from handheld.convert.streaming.fit import choose_cuts

            (wanted,) = targets
            with status(f"Planning for {budget}"):
                fitting = choose_cuts(
                    opened.model, latents.shape, wanted, precision or wanted.default_precision, budget_bytes
                )
            if fitting is None:
                raise CommandError(f"Nothing fits {budget} on {wanted.name}: handheld fit says what it would take.")
            cuts = fitting
        if not more and latents.shape[2] > 1:  # the other end of the lengths, to be verified too
            more = [(latents[:, :, :1].contiguous(), f"the first frame of {origin}")]
    exported = export_and_show(
        *(opened, latents, origin, targets, precision, bundle, overwrite),
        min_psnr_db=floor,
        more=more,
        cuts=cuts,
        validate=validate,
    )
    if explain:
        for artifact in exported.artifacts:
            _explain(artifact)
    say(f"Next: handheld verify {exported.path}")


def _asked_sizes(
    shapes: Sequence[str] | None, frames: int | None, height: int | None, width: int | None
) -> list[tuple[int | None, int | None, int | None]]:
    """(frames, height, width) of each shape, None where nothing was said."""
    if not shapes:
        return [(frames, height, width)]
    if (frames, height, width) != (None, None, None):
        raise CommandError("--shape takes the place of --height, --width and --frames: give it alone.")
    found: list[tuple[int | None, int | None, int | None]] = []
    for text in shapes:
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
        if match is None:
            raise CommandError(f"--shape {text}: wanted HEIGHTxWIDTHxFRAMES, such as 256x256x9.")
        tall, wide, long = map(int, match.groups())
        if (long, tall, wide) in found:
            raise CommandError(f"--shape {text} is given twice.")
        found.append((long, tall, wide))
    return found


def _sizes(latents: Tensor | None) -> str:
    """Time, height and width of latents."""
    return "x".join(map(str, latents.shape[2:])) if latents is not None else ""


def export_and_show(
    opened: Source,
    latents: Tensor,
    origin: str,
    targets: Sequence[Target],
    precision: str | None,
    out: Path,
    overwrite: bool,
    min_psnr_db: float | None = None,
    more: Sequence[tuple[Tensor, str]] = (),
    cuts: Sequence[PassCut] | None = None,
    validate: bool = False,
) -> Bundle:
    """Export a source, show what was done, and return the bundle.

    Args:
        latents, origin: the example, and a word on where it comes from.
        min_psnr_db: for precision auto.
        more: examples in further shapes; not for precision auto.
        cuts: of a decoder that is exported for streaming.
        validate: check each place of each rewrite.
    """
    from handheld.convert import export, export_smallest
    from handheld.convert.graph.ranges import texts as beyond_fp16_texts

    spec = opened.spec
    for example, where in ((latents, origin), *more):
        n, c, t, h, w = example.shape
        note(
            f"{opened.name}: latents {n}x{c}x{t}x{h}x{w} to {spec.frames(t)} frames of "
            f"{h * spec.spatial}x{w * spec.spatial}; golden input: {where}"
        )
    clips, what = opened.calibration(latents)
    clips = (*clips, *(clip for example, _ in more for clip in opened.calibration(example)[0]))
    calibrated = min_psnr_db is not None or any(
        t.precision(precision or t.default_precision).calibrated for t in targets
    )
    if calibrated:
        note(f"Calibration: {what}")
    with status("Exporting") as spinner:

        def show(step: Step) -> None:
            text = f"{step.target + ': ' if step.target else ''}{step.doing}"
            if spinner is None:
                note(f"  {text}")
            else:
                spinner.update(text)

        how: dict[str, Any] = {
            "precision": precision,
            "more": [example for example, _ in more],
            "stream": cuts,
            "validate": validate,
        }
        if min_psnr_db is not None:
            how = {"min_psnr_db": min_psnr_db, "validate": validate}
        calibration = {"calibration_latents": what} if calibrated else {}
        bundle = (export if min_psnr_db is None else export_smallest)(
            opened.model,
            latents,
            out,
            targets=targets,
            **how,
            calibration=clips,
            name=opened.name,
            provenance={
                **opened.provenance,
                "golden_latents": "; ".join(dict.fromkeys([origin, *(where for _, where in more)])),
                **calibration,
            },
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
        for text in beyond_fp16_texts(artifact.settings):
            say(f"  {text}")
    return bundle


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
