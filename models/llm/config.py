"""What a decoder-only model is, whichever file it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import ModelError

NORMS = ("rms", "layer")
ACTIVATIONS = ("relu", "silu")


@dataclass(frozen=True)
class DecoderConfig:
    """A pre-norm decoder: attention, then a feed-forward layer, each added to the residual.

    family: `llama` (RMS norm, rotary positions, gated layers) or `opt` (layer norm, learned positions, biases).
    rope_inv_freq: (head_dim / 2,) fp32 where positions are rotary; rope_scale multiplies the cosines and sines.
    position_offset: added to a position before a learned one is looked up. tied: the head is the embedding.
    eos: tokens that end a text. Raises ModelError listing every fault.
    """

    family: str
    vocab: int
    layers: int
    d_model: int
    d_ff: int
    heads: int
    kv_heads: int
    head_dim: int
    activation: str
    norm: str
    norm_eps: float
    max_positions: int
    tied: bool
    eos: tuple[int, ...] = ()
    position_offset: int = 0
    rope_scale: float = 1.0
    rope_inv_freq: np.ndarray | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        sizes = ("vocab", "layers", "d_model", "d_ff", "heads", "kv_heads", "head_dim", "max_positions")
        faults = [f"{name} is {getattr(self, name)!r}" for name in sizes if not _is_size(getattr(self, name))]
        if self.activation not in ACTIVATIONS:
            faults.append(f"its activation is {self.activation}, allowed are {', '.join(ACTIVATIONS)}")
        if not faults and self.heads % self.kv_heads:
            faults.append(f"its {self.heads} heads are no multiple of its {self.kv_heads} key-value heads")
        if self.rope_inv_freq is not None and self.rope_inv_freq.shape != (self.head_dim // 2,):
            faults.append(f"its rotary frequencies are {self.rope_inv_freq.shape} for heads of {self.head_dim}")
        if faults:
            raise ModelError("This language model is not supported: " + "; ".join(faults) + ".")

    @property
    def gated(self) -> bool:
        return self.family == "llama"

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """By name, the shapes of a layer's tensors. Those in `OPTIONAL` may be absent."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        d, neurons = self.d_model, self.d_ff
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (d,), "q": (queries, d), "k": (keys, d), "v": (keys, d), "o": (d, queries),
            "q_bias": (queries,), "k_bias": (keys,), "v_bias": (keys,), "o_bias": (d,),
            "ffn_norm": (d,), "up": (neurons, d), "down": (d, neurons),
        }  # fmt: skip
        if self.gated:
            return {**shapes, "gate": (neurons, d)}
        return {**shapes, "attn_norm_bias": (d,), "ffn_norm_bias": (d,), "up_bias": (neurons,), "down_bias": (d,)}

    def outer_shapes(self) -> dict[str, tuple[int, ...]]:
        """By name, the shapes of the tensors outside of the layers."""
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab, self.d_model), "norm": (self.d_model,)}
        if not self.tied:
            shapes["head"] = (self.vocab, self.d_model)
        if not self.gated:
            shapes["norm_bias"] = (self.d_model,)
            shapes["positions"] = (self.max_positions + self.position_offset, self.d_model)
        return shapes


OPTIONAL = ("q_bias", "k_bias", "v_bias", "o_bias")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
