"""Opening a checkpoint of any kind."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelError
from .checkpoint import Checkpoint
from .embedded import embedded_file
from .folder import FolderCheckpoint
from .gguf_file import GGUFCheckpoint

EMBEDDED = "smollm2"


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a checkpoint: a folder as transformers' save_pretrained writes it, a hub id, a .gguf file, or `smollm2`,
    the model of the extra `smollm2`. Reads no weights.

    Raises ModelError for what is none of these, and for an architecture that is not supported, by name.
    """
    path = Path(source).expanduser()
    if str(source) == EMBEDDED and not path.exists():
        return GGUFCheckpoint(embedded_file())
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return GGUFCheckpoint(path)
        raise ModelError(f"{source} is no .gguf file. Give such a file, a folder with config.json, or a hub id.")
    return FolderCheckpoint(source)
