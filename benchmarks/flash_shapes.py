"""Models of random weights in the shapes of real ones, as packs and GGUF files, for benchmarks of the flash engine.

Values do not matter to the time of a kernel, but which neurons a token needs decides what is read. The embeddings
of tokens 0, 1, 2 ... and the neurons' importances are drawn so that the neurons that matter overlap from one of
these tokens to the next as they do in a real model: successive embeddings correlate by 0.4, and importances are
log-normal with a deviation of 0.5. With 14.9 % active, a window of 1, 2, 4, 5, 8, 16 tokens then holds 15, 25, 41,
47, 60, 80 % of the neurons and leaves 10.4, 8.4, 6.0, 5.2, 3.5, 1.5 % to load for each token; a distilled
SmolLM2-135M has 15, 25, 41, 47, 61, 80 and 10.5, 8.5, 6.0, 5.2, 3.5, 1.4. Attention and feed-forward layers add
next to nothing to the text, so that every layer sees the token's own embedding. What the selector then finds and
misses is its own work on these weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handheld.runtime.flash import FeedForward, LayerSelector, ModelConfig, PackSpec, PackWriter
from handheld.runtime.flash.quantise import StoredRows, encode_rows

ACTIVE = 0.149  # of the neurons
CORRELATION = 0.4  # of one token's embedding with the next one's
IMPORTANCE_SIGMA = 0.5  # of the logarithm
GROUP = 32
SELECTOR_GROUP = 64  # as `handheld llm pack` chooses
EMBED_DTYPE = "int8"
_QUIET = 0.01  # of what layers add to the text, against the embedding


@dataclass(frozen=True)
class Shape:
    """A Llama-family model whose head is its embedding."""

    layers: int
    d_model: int
    d_ff: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Of attention, by the pack's names."""
        d, kv = self.d_model, self.kv_heads * self.head_dim
        return {"q": (d, d), "k": (kv, d), "v": (kv, d), "o": (d, d)}


SHAPES = {
    "tiny": Shape(2, 256, 1024, 4, 2, 512),
    "smollm2": Shape(30, 576, 1536, 9, 3, 49152),
    "1b": Shape(16, 2048, 8192, 32, 8, 32000),  # Llama 3.2 1B
    "3b": Shape(28, 3072, 8192, 24, 8, 32000),  # Llama 3.2 3B
}

# The GGUF type with the same blocks as a pack's dtype, and the bytes of 32 weights.
GGUF_TYPES = {"int8": ("Q8_0", 34), "int4": ("Q4_0", 18), "int4m": ("Q4_1", 20)}


def write_pack(path: Path, shape: Shape, dtype: str) -> None:
    """A whole model with a ternary selector, its neurons in the order of their importance."""
    spec = PackSpec(
        layers=shape.layers, d_model=shape.d_model, d_ff=shape.d_ff, dtype=dtype, selector="ternary",
        selector_size=SELECTOR_GROUP,
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def weights(*size: int, scale: float = 1.0) -> np.ndarray:
        return rng.standard_normal(size, dtype=np.float32) * np.float32(scale / np.sqrt(shape.d_model))

    config = ModelConfig(
        architecture="llama", vocab=shape.vocab, heads=shape.heads, kv_heads=shape.kv_heads,
        head_dim=shape.head_dim, norm="rms", norm_eps=1e-5, position="rope", max_positions=2048, group_size=GROUP,
        dtypes={"embed": EMBED_DTYPE, "attention": dtype},
    )  # fmt: skip
    ones = np.ones(shape.d_model, np.float32)
    gate, up = (weights(shape.d_ff, shape.d_model) for _ in range(2))
    down = weights(shape.d_model, shape.d_ff, scale=_QUIET)
    # Layers share their rows, which differ in what matters of them. Encoded once where the dtype has a stored form.
    rows = [_stored(part, dtype) for part in (gate, up)]
    attention = {
        name: weights(*size, scale=_QUIET if name == "o" else 1.0) for name, size in shape.matrices.items()
    }
    with PackWriter(path, spec) as writer:
        writer.add_resident("model.config", config.encode())
        writer.add_matrix("model.embed", embeddings(shape, rng), EMBED_DTYPE, GROUP)
        writer.add_resident("model.rope_inv_freq", 10000.0 ** -_positions(shape.head_dim))
        writer.add_resident("model.norm", ones)
        for layer in range(shape.layers):
            importance = np.exp(IMPORTANCE_SIGMA * rng.standard_normal(shape.d_ff)).astype(np.float32)
            writer.add_layer(
                FeedForward(gate=rows[0], up=rows[1], down=down),
                order=np.argsort(-importance),
                importance=importance,
                threshold=_threshold(importance, rng),
                selector=LayerSelector(_threshold(importance, rng)),
            )
            for name, matrix in attention.items():
                writer.add_matrix(f"model.{layer}.{name}", matrix, dtype, GROUP)
            for name in ("attn_norm", "ffn_norm"):
                writer.add_resident(f"model.{layer}.{name}", ones)


def embeddings(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """(vocab, d_model), each row correlated with the one before it."""
    rows = rng.standard_normal((shape.vocab, shape.d_model), dtype=np.float32)
    fresh = np.float32(np.sqrt(1 - CORRELATION**2))
    for at in range(1, shape.vocab):
        rows[at] = np.float32(CORRELATION) * rows[at - 1] + fresh * rows[at]
    return rows


def write_gguf(path: Path, shape: Shape, dtype: str) -> None:
    """The same shape and bits per weight for llama.cpp. Its weights are random bytes, as it needs all of them."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(shape.d_model)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)
    for name, rows, columns, kind in _gguf_tensors(shape, dtype):
        if kind is None:
            writer.add_tensor(name, np.ones(columns, np.float32))
        else:
            type_name, _ = GGUF_TYPES[kind]
            blocks = _random_blocks(rng, rows, columns, kind)
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_tensors(shape: Shape, dtype: str) -> Iterator[tuple[str, int, int, str | None]]:
    """Name, rows, columns, and the pack's name for the type; None: floats."""
    d, f = shape.d_model, shape.d_ff
    yield "token_embd.weight", shape.vocab, d, EMBED_DTYPE
    yield "output_norm.weight", 1, d, None
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", 1, d, None
        for name, (rows, columns) in shape.matrices.items():
            yield f"{prefix}attn_{'output' if name == 'o' else name}.weight", rows, columns, dtype
        yield prefix + "ffn_norm.weight", 1, d, None
        yield prefix + "ffn_gate.weight", f, d, dtype
        yield prefix + "ffn_up.weight", f, d, dtype
        yield prefix + "ffn_down.weight", d, f, dtype


def _random_blocks(rng: np.random.Generator, rows: int, columns: int, dtype: str) -> np.ndarray:
    """(rows, bytes of a row) uint8: blocks whose fp16 scale is small and whose weights are random bytes."""
    _, block_bytes = GGUF_TYPES[dtype]
    blocks = rng.integers(0, 256, (rows, columns // 32, block_bytes), dtype=np.uint8)
    floats = 2 if dtype == "int4m" else 1  # a minimum beside the scale
    blocks[:, :, : 2 * floats] = np.full(floats, 1e-3, np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def _stored(rows: np.ndarray, dtype: str) -> np.ndarray | StoredRows:
    if dtype not in GGUF_TYPES:
        return rows
    return StoredRows(encode_rows(rows, dtype, GROUP), dtype, rows.shape[1], GROUP)


def _positions(head_dim: int) -> np.ndarray:
    return (np.arange(0, head_dim, 2) / head_dim).astype(np.float32)


def _threshold(importance: np.ndarray, rng: np.random.Generator) -> float:
    """Over which the wanted share of abs(h) * importance is, by drawing gate and up products."""
    gate, up = rng.standard_normal((2, 16, len(importance)), dtype=np.float32)
    h = np.abs(gate / (1 + np.exp(-gate)) * up) * importance
    return float(np.quantile(h, 1 - ACTIVE))
