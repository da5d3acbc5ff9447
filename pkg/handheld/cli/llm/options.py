"""What several of these commands take."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from ..errors import CommandError

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}

Size = Annotated[str, typer.Option(help="Such as 64MB, 1.5GB or 512MiB.", metavar="SIZE")]


def parse_size(text: str) -> int:
    """Bytes of a size with a unit: 64MB is 64 * 10^6, 64MiB 64 * 2^20."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", text.strip(), flags=re.IGNORECASE)
    if not match:
        raise CommandError(f"{text} is not a size: give a number and a unit, such as 64MB or 512MiB.")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])
