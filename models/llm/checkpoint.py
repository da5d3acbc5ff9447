"""One face for every kind of checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ModelError
from .blocks import Blocks
from .config import OPTIONAL, DecoderConfig

EMBEDDED = "smollm2"


@dataclass(frozen=True)
class TokenizerFiles:
    """tokenizer: what `tokenizers` reads, JSON. chat_template: Jinja, of models that were taught to chat."""

    tokenizer: str
    chat_template: str | None


class Checkpoint(ABC):
    """Weights on disk, read when asked for: no more than one layer need be in memory."""

    config: DecoderConfig
    source: str

    def layer(self, index: int) -> dict[str, np.ndarray | Blocks]:
        """A layer's tensors by the names of `DecoderConfig.layer_shapes`. Raises ModelError naming every tensor
        that is missing or of another shape."""
        return self._read(self.config.layer_shapes(), index)

    def outer(self, name: str) -> np.ndarray | Blocks:
        """A tensor of `DecoderConfig.outer_shapes`, by name."""
        return self._read({name: self.config.outer_shapes()[name]}, None)[name]

    @abstractmethod
    def tokenizer(self) -> TokenizerFiles | None:
        """None: the checkpoint has none."""

    @abstractmethod
    def _tensor(self, name: str, layer: int | None) -> np.ndarray | Blocks | None:
        """A tensor by our name: fp32, or as it is quantised. None: there is none."""

    def _read(self, shapes: dict[str, tuple[int, ...]], layer: int | None) -> dict[str, np.ndarray | Blocks]:
        found, faults = {}, []
        for name, shape in shapes.items():
            tensor = self._tensor(name, layer)
            if tensor is not None and tensor.shape == shape:
                found[name] = tensor
            elif tensor is not None:
                faults.append(f"{name} is {tuple(tensor.shape)}, its configuration says {shape}")
            elif name not in OPTIONAL:
                faults.append(f"{name} is missing")
        if faults:
            where = "" if layer is None else f"layer {layer}: "
            raise ModelError(f"{self.source}: {where}{'; '.join(faults)}.")
        return found


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a checkpoint: a folder as transformers' save_pretrained writes it, a hub id, a .gguf file, or `smollm2`,
    the model of the extra `smollm2`. Reads no weights.

    Raises ModelError for what is none of these, and for an architecture that is not supported, by name.
    """
    from .embedded import embedded_file
    from .folder import FolderCheckpoint
    from .gguf_file import GGUFCheckpoint

    path = Path(source).expanduser()
    if str(source) == EMBEDDED and not path.exists():
        return GGUFCheckpoint(embedded_file())
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return GGUFCheckpoint(path)
        raise ModelError(f"{source} is no .gguf file. Give such a file, a folder with config.json, or a hub id.")
    return FolderCheckpoint(source)
