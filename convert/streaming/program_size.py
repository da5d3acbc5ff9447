"""What one program of a streamed decoder needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProgramSize:
    """What one program needs, from its rewritten graph; bytes are of the artefact's precision.

    Attributes:
        weight_bytes: of parameters and constants.
        inner_bytes: most activations at once, without inputs and outputs.
        written_bytes: the same with outputs.
        multiply_adds, moved_bytes: of a call: see `handheld check`.
    """

    weight_bytes: int
    inner_bytes: int
    written_bytes: int
    multiply_adds: int
    moved_bytes: int
