"""What every kind of checkpoint gives: tensors by our names, layer by layer, and a tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ..errors import ModelError
from .blocks import Blocks
from .config import OPTIONAL, DecoderConfig


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
