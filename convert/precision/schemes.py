"""How a precision stores a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Weights per tensor: up to so many stay as they are. A table of 256 values would be much of what it replaces.
LARGEST_UNCOMPRESSED = 10_000


@dataclass(frozen=True)
class Scheme:
    """How the values of a weight are stored.

    Attributes:
        kind: "float"; "linear", integers with a scale an output channel; "palette", indices into a table.
        bits: of a value, an integer or an index.
        group: of a palette, output channels that share a table; None is one table for the weight.
    """

    kind: Literal["float", "linear", "palette"]
    bits: int
    group: int | None = None

    def tables(self, channels: int) -> int:
        """Tables of a palettised weight: one where the groups do not come out even."""
        return channels // self.group if self.group and channels % self.group == 0 else 1


SCHEMES = {
    "fp32": Scheme("float", 32),
    "fp16": Scheme("float", 16),
    "int8": Scheme("linear", 8),
    "int4": Scheme("linear", 4),
    "pal8": Scheme("palette", 8),
    "pal6": Scheme("palette", 6),
    "pal4": Scheme("palette", 4),
    # Groups cost 2**bits values each, a few percent of the weight. Apple names 8, 16 and 32 channels.
    "pal6g8": Scheme("palette", 6, 8),
    "pal4g8": Scheme("palette", 4, 8),
}
