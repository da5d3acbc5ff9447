"""What several of these commands take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..errors import CommandError

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}

Pack = Annotated[Path, typer.Argument(help="A pack folder.", show_default=False)]
Size = Annotated[str, typer.Option(help="Such as 64MB, 1.5GB or 512MiB.", metavar="SIZE")]
Memory = Annotated[
    Optional[str],  # noqa: UP045  typer reads this at run time
    typer.Option(
        "--memory",
        help="Limit of all that the engine holds, such as 64MB.",
        metavar="SIZE",
        show_default="all of the model",
    ),
]
Mode = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="dense, exact or selected.", show_default="selected where the pack has a selector, else exact"
    ),
]
MissWeight = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        help="Selected mode: what the score of a neuron counts for that has to be read, 0 to 1. Lower reads less "
        "and loses more.",
        min=0.01,
        max=1,
        show_default="0.5",
    ),
]
Threads = Annotated[int, typer.Option(help="Threads that compute.", min=1)]


def parse_size(text: str) -> int:
    """Bytes of a size with a unit: 64MB is 64 * 10^6, 64MiB 64 * 2^20."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", text.strip(), flags=re.IGNORECASE)
    if not match:
        raise CommandError(f"{text} is not a size: give a number and a unit, such as 64MB or 512MiB.")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def engine_options(
    pack: Any, memory: str | None, mode: str | None, context: int, threads: int, miss_weight: float | None
) -> Any:
    """The ModelOptions that these arguments ask for."""
    from handheld.runtime.flash.text import model_options

    if mode not in (None, "dense", "exact", "selected"):
        raise CommandError(f"There is no mode {mode}: use dense, exact or selected.")
    if mode == "selected" and not pack.info.selector:
        raise CommandError(f"{pack.path} has no selector: pack it with --selector, or use dense or exact mode.")
    budget = None if memory is None else parse_size(memory)
    return model_options(pack, budget, mode, context, threads, miss_weight)  # type: ignore[arg-type]


def read_text(path: Path) -> str:
    """A text file. Raises CommandError for one that is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}.") from error
