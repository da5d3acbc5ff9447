"""handheld verify"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .console import say, status, table

if TYPE_CHECKING:
    from handheld.runtime.bundle import Bundle
    from handheld.runtime.verify import Verdict

EPILOG = "Example: [dim]handheld verify bundle && echo all artefacts agree[/dim]"


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.", show_default=False)],
    only: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Artefact to verify; repeatable.", show_default="all"),
    ] = None,
) -> None:
    """Check that every artefact computes what the model does.

    Replays the bundle's golden tensors through each artefact that this machine can run, each in a process of its
    own, and compares with the golden output under the artefact's stated tolerance. Core ML away from macOS is
    verified by a reference evaluator, on the CPU: the program with its roundings, not a device. Core AI away from
    Apple's systems executes its CPU path: neither the Neural Engine nor the GPU. What cannot run
    here at all is named as not verified. Altered or truncated files fail by hash before they are loaded.
    Exits with status 1 if any artefact fails, and 2 if none could be verified.
    """
    from handheld.runtime.bundle import read_bundle

    verdicts = verify_and_show(read_bundle(bundle), only)
    if any(v.status == "fail" for v in verdicts):
        raise typer.Exit(1)
    if not any(v.status == "pass" for v in verdicts):
        raise typer.Exit(2)


def _golden_latents(bundle: Bundle) -> str:
    """What the golden input is. Random values stay where clamps and norms are harmless; real ones may not."""
    origin = str(bundle.manifest.provenance.get("golden_latents", "not recorded"))
    random = origin.startswith(("standard normal", "normal with"))
    hint = "; random values hide faults: export with --calibration FILE for real ones" if random else ""
    return f"Golden latents: {origin}{hint}."


def verify_and_show(bundle: Bundle, only: Sequence[str] | None = None) -> list[Verdict]:
    """Verify a bundle, print the table and the reasons, and return the verdicts."""
    from rich.text import Text

    from handheld.verifying import divergence, verify

    with status("Verifying"):
        verdicts = verify(bundle, only=only)
    style = {"pass": "green", "fail": "bold red", "not verified": "yellow"}
    table(
        f"Verification of {bundle.path}",
        ["artefact", "verdict", "max abs error", "allowed", "PSNR, dB", "runtime"],
        [
            [
                v.artifact.name,
                Text(v.status, style[v.status]),
                "–" if v.max_abs_error is None else f"{v.max_abs_error:.2e}",
                str(v.tolerance),
                "–" if v.psnr_db is None else f"{v.psnr_db:.1f}",
                f"{v.artifact.runtime} {v.runtime_version or ''}".strip(),
            ]
            for v in verdicts
        ],
    )
    say(_golden_latents(bundle))
    for v in verdicts:
        if v.reason:
            say(f"{v.artifact.name}: {v.reason}")
        if v.status == "fail" and v.max_abs_error is not None:
            with status(f"Looking for the first op of {v.artifact.name} that diverges"):
                where = divergence(bundle, v)
            if where:
                say(f"{v.artifact.name}: {where}")
    return verdicts
