"""Arguments that say which decoder and which clip, for the commands that capture a graph."""

from __future__ import annotations

import re
from typing import Annotated, Optional

import typer

from .errors import CommandError

_SOURCE = (
    "A run folder, a preset with random weights (ltx, tiny, ...: docs/families.md), a checkpoint (.safetensors, "
    ".pth, .ckpt), a folder or hub id of a diffusers autoencoder or pipeline, or package.module:factory or "
    "file.py:factory for a module of your own."
)
Source = Annotated[str, typer.Argument(help=_SOURCE, show_default=False)]
OptionalSource = Annotated[
    Optional[str],  # noqa: UP045  typer reads this at run time
    typer.Argument(help=_SOURCE + " With --teacher, the folder or hub id of its weights.", show_default=False),
]
Teacher = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="A teacher's own decoder: embedded, ltx, hunyuan, cogvideox, wan; SOURCE may name its weights.",
        show_default=False,
    ),
]
Height = Annotated[
    Optional[int],  # noqa: UP045  typer reads this at run time
    typer.Option(min=1, help="Frame height in pixels.", show_default="the run's, else 256"),
]
Width = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Frame width in pixels.", show_default="the run's, else 256"),
]
Frames = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1, help="Frames of the clip; lengths depend on the latent space.", show_default="the run's, else 9"
    ),
]
Shape = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        help="HEIGHTxWIDTHxFRAMES, in place of those three; repeatable on onnx, android, android-vulkan, "
        "ios-executorch, ios18 and ios27: one artefact for several shapes, which share the weights. The first is "
        "the primary one.",
        show_default=False,
    ),
]
Config = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Preset or JSON, for a checkpoint without config.json beside it.", show_default=False),
]
Subfolder = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Folder inside SOURCE that holds the decoder.", show_default=False),
]
Precision = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="fp32 or fp16; int8 on onnx and android; on ios targets weights of 8 bits (int8, pal8), 6 (pal6) or 4 "
        "(pal4); for export also auto: each target's smallest artefact that stays over --min-psnr.",
        show_default="fp16 on ios targets and android-vulkan, else fp32",
    ),
]
Causal = Annotated[bool, typer.Option("--causal", help="The causal form of a preset.")]
Seed = Annotated[int, typer.Option(help="Seed of a preset's random weights.")]
Budget = Annotated[
    str,
    typer.Option(help="Memory of the process that decodes: 2GB, 800MB, 1.5GiB.", show_default=False),
]

_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


def bytes_of(text: str) -> int:
    """The bytes of a size such as 1.5GB. Raises CommandError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(\w+)", text)
    if match is None or match[2] not in _UNITS or not float(match[1]):
        raise CommandError(f"{text} is no amount of memory: a number and {', '.join(_UNITS)}, such as 1.5GB.")
    return int(float(match[1]) * _UNITS[match[2]])
