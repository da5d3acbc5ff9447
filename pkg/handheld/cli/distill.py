"""handheld distill"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .console import err, say, table
from .errors import CommandError

if TYPE_CHECKING:
    from handheld.distill import Recipe

EPILOG = (
    "Examples: [dim]handheld distill demo --videos clips --out runs/first[/dim]  ·  "
    "[dim]handheld distill --out runs/first --resume[/dim]"
)


def run(
    recipe: Annotated[
        Optional[str],  # noqa: UP045  typer reads this at run time
        typer.Argument(
            help="A recipe: a YAML file, or the name of one that ships with handheld (--list shows them). "
            "Not needed with --resume.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to make, or to go on with.")] = Path("run"),
    videos: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Video file or folder, instead of the recipe's; repeatable.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, to the bit.")] = False,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1,
            help="CPU threads. A run must be resumed with as many as it began with.",
            show_default="all cores",
        ),
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the shipped recipes and stop.")] = False,
) -> None:
    """Distil a frozen teacher's decoder into a small student.

    A recipe (teacher, student, data, losses, optimiser) and videos go in. A run folder comes out: the student
    (safetensors and configuration), metrics as JSON lines, loss and PSNR plots, and a picture of original, teacher
    and student frames. Interrupt it whenever you like: --resume goes on where it was.
    """

    if list_recipes:
        from handheld.distill import shipped_recipes

        for name, path in shipped_recipes().items():
            first = path.read_text().splitlines()[0].lstrip("# ")
            say(f"{name}: {first}")
        return
    if recipe is None and not resume:
        raise CommandError("Give a recipe: a YAML file or a shipped one (handheld distill --list), or --resume.")

    import torch

    if threads:
        torch.set_num_threads(threads)
    folder = distil_and_show(recipe, out, videos, resume)
    say(f"Next: handheld export {folder} --target ios --target android --target onnx --out bundle")


def distil_and_show(recipe: Recipe | str | None, out: Path, videos: Sequence[Path] | None, resume: bool) -> Path:
    """Distil behind a progress bar, print the scores, and return the run folder."""
    from handheld.distill import RichProgress, distill

    with RichProgress(err) as progress:
        summary = distill(recipe, out, videos=videos, resume=resume, progress=progress)
    table(
        f"Held-out clips after {summary.steps} steps",
        ["", "PSNR, dB", "SSIM", "PSNR, min-max", "SSIM, min-max"],
        [
            [
                who,
                f"{scores.psnr_db:.2f}",
                f"{scores.ssim:.4f}",
                f"{scores.psnr_minmax_db:.2f}",
                f"{scores.ssim_minmax:.4f}",
            ]
            for who, scores in (("teacher", summary.teacher), ("student", summary.student))
        ],
    )
    say(
        "Plain PSNR is on [0, 1]; min-max is the convention of the released metric code.\n"
        f"Run folder: {summary.folder} (student/, plots/, frames.png, metrics.jsonl)"
    )
    return summary.folder
