"""What an architecture is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError
from ..config import DecoderConfig


@dataclass(frozen=True)
class Architecture:
    """One family of checkpoints.

    config: transformers' configuration object -> ours; raises ModelError for a variant that is not supported.
    outer, layer: our name of a tensor -> the checkpoint's in transformers; `{}` stands for the layer's number.
    gguf_name: `general.architecture` in GGUF files, which all name tensors alike; None: there are none.
    gguf_interleaved: rows of q and k rotate in neighbouring pairs there, not in halves of a head.
    """

    class_name: str
    config: Callable[[Any], DecoderConfig]
    outer: Mapping[str, str]
    layer: Mapping[str, str]
    gguf_name: str | None = None
    gguf_interleaved: bool = False


def refuse(faults: Mapping[str, bool], class_name: str) -> None:
    """Raise ModelError naming every variant that holds."""
    if found := [what for what, holds in faults.items() if holds]:
        raise ModelError(f"This {class_name} is a variant that is not supported: {', '.join(found)}.")


def eos_of(config: Any) -> tuple[int, ...]:
    """The tokens that end a text, of a configuration that has none, one or several."""
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list | tuple) else (eos,)
