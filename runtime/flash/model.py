"""What a pack says of the model around its feed-forward layers: `model.config` of resident.safetensors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

from ..errors import RuntimeFailure

_LAYOUTS = {"llama": ("rms", "rope"), "opt": ("layer", "learned")}
_MATRIX_KINDS = ("embed", "attention", "head")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only model around the layers of a PackSpec; docs/flash.md lists the tensors that go with it.

    position_offset: added to a token's position before a learned one is looked up. rope_scale: multiplies the
    cosines and sines. eos: tokens that end a text. dtypes: how `embed`, `attention` (q, k, v, o) and `head` are
    stored; those with scales share `group_size`, weights per scale. Raises RuntimeFailure listing every fault.
    """

    architecture: Literal["llama", "opt"]
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    position: Literal["rope", "learned"]
    max_positions: int
    position_offset: int = 0
    rope_scale: float = 1.0
    eos: tuple[int, ...] = ()
    group_size: int = 32
    dtypes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if faults := self._faults():
            raise RuntimeFailure("This model cannot be packed: " + "; ".join(faults) + ".")

    def encode(self) -> np.ndarray:
        """The tensor `model.config`: uint8, a JSON object."""
        return np.frombuffer(json.dumps(asdict(self), allow_nan=False).encode(), np.uint8)

    def _faults(self) -> list[str]:
        faults = []
        if self.architecture not in _LAYOUTS:
            faults.append(f"architecture is {self.architecture!r}, allowed are {', '.join(_LAYOUTS)}")
        elif (self.norm, self.position) != _LAYOUTS[self.architecture]:
            norm, position = _LAYOUTS[self.architecture]
            faults.append(
                f"norm and position are {self.norm!r} and {self.position!r}, "
                f"those of {self.architecture} are {norm!r} and {position!r}"
            )
        for name in ("vocab", "heads", "kv_heads", "head_dim", "max_positions"):
            if getattr(self, name) < 1:
                faults.append(f"{name} is {getattr(self, name)}, allowed are 1 and more")
        if self.kv_heads > 0 and self.heads % self.kv_heads:
            faults.append(f"heads is {self.heads}, allowed are multiples of the {self.kv_heads} kv_heads")
        for kind, dtype in self.dtypes.items():
            if kind not in _MATRIX_KINDS:
                faults.append(f"dtypes names {kind!r}, allowed are {', '.join(_MATRIX_KINDS)} ({dtype!r})")
        return faults
