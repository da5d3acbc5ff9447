"""Language models in GGUF files, read with the `gguf` package.

Not through transformers, which makes a torch copy of the whole model in floats: here a tensor is read when it is
asked for, and blocks of Q4_0, Q4_1 and Q8_0 stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError
from .architectures import GGUF_ARCHITECTURES
from .blocks import BLOCK_COLUMNS, Blocks
from .checkpoint import Checkpoint, TokenizerFiles
from .config import DecoderConfig
from .tokenizer import from_transformers

_OUTER = {"embed": "token_embd.weight", "head": "output.weight", "norm": "output_norm.weight"}
_LAYER = {
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "o_bias": "attn_output.bias",
    "ffn_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}
_FLOATS = ("F32", "F16", "F64")


class GGUFCheckpoint(Checkpoint):
    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._path = path
        reader = _open(path)
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        name = self._field("general.architecture")
        if name not in GGUF_ARCHITECTURES:
            raise ModelError(
                f"{path} is of architecture {name}, which is not supported. Supported in GGUF files: "
                f"{', '.join(GGUF_ARCHITECTURES)}."
            )
        self._architecture = GGUF_ARCHITECTURES[name]
        self.config = self._config(name)

    def tokenizer(self) -> TokenizerFiles | None:
        if "tokenizer.ggml.model" not in self._fields:
            return None
        return from_transformers(self._path.parent, self.source, gguf_file=self._path.name)

    def _tensor(self, name: str, layer: int | None) -> np.ndarray | Blocks | None:
        stored = _OUTER.get(name) if layer is None else _LAYER.get(name) and f"blk.{layer}.{_LAYER[name]}"
        if stored not in self._tensors:
            return None
        tensor = _decode(self._tensors[stored], self.source)
        if self._architecture.gguf_interleaved and name in ("q", "k"):
            heads = self.config.heads if name == "q" else self.config.kv_heads
            return _rows(tensor, _halves(tensor.shape[0], heads))
        return tensor

    def _field(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def _config(self, arch: str) -> DecoderConfig:
        def needed(key: str) -> Any:
            value = self._field(f"{arch}.{key}")
            if value is None:
                raise ModelError(f"{self.source} does not say {arch}.{key}. Convert the model again.")
            return value

        heads, d_model = needed("attention.head_count"), needed("embedding_length")
        head_dim = self._field(f"{arch}.attention.key_length", d_model // heads)
        eos = self._field("tokenizer.ggml.eos_token_id")
        if self._field(f"{arch}.expert_count", 0):
            raise ModelError(f"{self.source} is a mixture of experts, which is not supported.")
        if self._field(f"{arch}.rope.dimension_count", head_dim) != head_dim:
            raise ModelError(f"{self.source} rotates a part of each head only, which is not supported.")
        return DecoderConfig(
            family="llama",
            vocab=self._tensors["token_embd.weight"].shape[1].item() if "token_embd.weight" in self._tensors else 0,
            layers=needed("block_count"),
            d_model=d_model,
            d_ff=needed("feed_forward_length"),
            heads=heads,
            kv_heads=self._field(f"{arch}.attention.head_count_kv", heads),
            head_dim=head_dim,
            activation="silu",
            norm="rms",
            norm_eps=needed("attention.layer_norm_rms_epsilon"),
            max_positions=needed("context_length"),
            tied=_OUTER["head"] not in self._tensors,
            eos=() if eos is None else (eos,),
            rope_inv_freq=self._inverse_frequencies(arch, head_dim),
        )

    def _inverse_frequencies(self, arch: str, head_dim: int) -> np.ndarray:
        import torch

        base = self._field(f"{arch}.rope.freq_base", 10000.0)
        # As transformers computes them, to the bit.
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        frequencies: np.ndarray = (1.0 / (base**exponents)).numpy()
        kind = self._field(f"{arch}.rope.scaling.type", "none")
        if kind == "linear":
            frequencies = frequencies / np.float32(self._field(f"{arch}.rope.scaling.factor", 1.0))
        elif kind != "none":
            raise ModelError(
                f"{self.source} scales rotary positions by {kind}, which is not supported in GGUF files."
            )
        if "rope_freqs.weight" in self._tensors:
            frequencies = frequencies / np.asarray(_decode(self._tensors["rope_freqs.weight"], self.source))
        return frequencies.astype(np.float32)


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError("GGUF files are read with the package gguf: pip install 'handheld[llm]'.") from error
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader indexes and asserts by whatever the file says
        raise ModelError(f"{path} is not a whole GGUF file ({error}). Copy or download it again.") from error


def _decode(tensor: Any, source: str) -> np.ndarray | Blocks:
    """fp32, or the blocks of a type that they can be kept in."""
    kind = tensor.tensor_type.name
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if kind in _FLOATS:
        return np.asarray(tensor.data, np.float32).reshape(shape)
    if kind in ("Q4_0", "Q4_1", "Q8_0") and len(shape) == 2:
        return _blocks(kind, np.asarray(tensor.data).reshape(shape[0], shape[1] // BLOCK_COLUMNS, -1))
    from gguf.quants import dequantize

    try:
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)
    except NotImplementedError as error:
        raise ModelError(f"{source}: {tensor.name} is of type {kind}, which is not supported.") from error


def _blocks(kind: str, stored: np.ndarray) -> Blocks:
    """stored: (rows, blocks, bytes of a block): fp16 scale, fp16 minimum where there is one, codes. In a block of
    nibbles, byte j holds codes j (low) and j + 16."""
    rows = len(stored)

    def half(at: int) -> np.ndarray:
        return np.ascontiguousarray(stored[..., at : at + 2]).view("<f2")[..., 0]

    if kind == "Q8_0":
        return Blocks(8, np.ascontiguousarray(stored[..., 2:]).view(np.int8).reshape(rows, -1), half(0))
    packed = stored[..., 4:] if kind == "Q4_1" else stored[..., 2:]
    codes = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(rows, -1)
    if kind == "Q4_1":
        return Blocks(4, codes, half(0), half(2))
    return Blocks(4, codes.astype(np.int8) - np.int8(8), half(0))


def _halves(rows: int, heads: int) -> np.ndarray:
    """Where each row of q or k is in the file: pairs that rotate together are neighbours there."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _rows(tensor: np.ndarray | Blocks, ids: np.ndarray) -> np.ndarray | Blocks:
    return tensor.rows(ids) if isinstance(tensor, Blocks) else tensor[ids]
