"""A plain forward in torch, layer by layer, to look at activations with. Memory holds one layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .blocks import Blocks, dense
from .checkpoint import Checkpoint
from .config import DecoderConfig

Layer = dict[str, np.ndarray | Blocks]


class Decoder:
    """The arithmetic of one decoder. Shapes: tokens (N, T) int64, hidden (N, T, d_model) fp32.

    hidden = decoder.embed(tokens)
    for index in range(config.layers):
        layer = checkpoint.layer(index)
        hidden = decoder.attend(layer, hidden)
        x = decoder.feed_forward_input(layer, hidden)   # what the feed-forward layer sees
        h = decoder.activations(layer, x)               # its neurons
        hidden = decoder.feed_forward(layer, hidden, h)
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.config: DecoderConfig = checkpoint.config
        self.activate = F.silu if self.config.activation == "silu" else F.relu

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        hidden = F.embedding(tokens, self._outer("embed"))
        if self.config.family == "opt":
            positions = self._outer("positions")[self.config.position_offset :]
            hidden = hidden + positions[: tokens.shape[1]]
        return hidden

    @torch.no_grad()
    def attend(self, layer: Layer, hidden: Tensor) -> Tensor:
        """hidden with the attention's output added."""
        config = self.config
        x = self._norm(hidden, layer["attn_norm"], layer.get("attn_norm_bias"))

        def heads(name: str, count: int) -> Tensor:
            rows = _linear(x, layer[name], layer.get(f"{name}_bias"))
            return rows.view(*x.shape[:2], count, config.head_dim).transpose(1, 2)

        q, k, v = heads("q", config.heads), heads("k", config.kv_heads), heads("v", config.kv_heads)
        if config.rope_inv_freq is not None:
            q, k = self._rotate(q), self._rotate(k)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return hidden + _linear(out.transpose(1, 2).flatten(2), layer["o"], layer.get("o_bias"))

    @torch.no_grad()
    def feed_forward_input(self, layer: Layer, hidden: Tensor) -> Tensor:
        return self._norm(hidden, layer["ffn_norm"], layer.get("ffn_norm_bias"))

    @torch.no_grad()
    def activations(self, layer: Layer, x: Tensor) -> Tensor:
        """(..., d_ff): what each neuron multiplies its down column with."""
        up = _linear(x, layer["up"], layer.get("up_bias"))
        return self.activate(_linear(x, layer["gate"], None)) * up if self.config.gated else self.activate(up)

    @torch.no_grad()
    def feed_forward(self, layer: Layer, hidden: Tensor, activations: Tensor) -> Tensor:
        """hidden with the feed-forward layer's output added."""
        return hidden + _linear(activations, layer["down"], layer.get("down_bias"))

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """(N, T, vocab) of what follows each token."""
        bias = None if self.config.gated else self._checkpoint.outer("norm_bias")
        x = self._norm(hidden, self._checkpoint.outer("norm"), bias)
        return F.linear(x, self._outer("embed" if self.config.tied else "head"))

    def _outer(self, name: str) -> Tensor:
        return _tensor(self._checkpoint.outer(name))

    def _norm(self, x: Tensor, weight: np.ndarray | Blocks, bias: np.ndarray | Blocks | None) -> Tensor:
        scale = _tensor(weight)
        if self.config.norm == "rms":
            return scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.norm_eps))
        offset = None if bias is None else _tensor(bias)
        return F.layer_norm(x, x.shape[-1:], scale, offset, self.config.norm_eps)

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotary positions; halves of a head rotate against each other."""
        frequencies = torch.from_numpy(self.config.rope_inv_freq)
        angles = torch.arange(x.shape[2], dtype=torch.float32)[:, None] * frequencies
        cos, sin = angles.cos() * self.config.rope_scale, angles.sin() * self.config.rope_scale
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _linear(x: Tensor, weight: np.ndarray | Blocks, bias: np.ndarray | Blocks | None) -> Tensor:
    return F.linear(x, _tensor(weight), None if bias is None else _tensor(bias))


def _tensor(stored: np.ndarray | Blocks) -> Tensor:
    # torch warns of memory that it may not write, such as a mapped file's.
    return torch.from_numpy(np.require(dense(stored), requirements="W"))
