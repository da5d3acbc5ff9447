"""Small random models of `transformers`, and packs of them written by the shortest converter there can be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, OPTConfig, PreTrainedModel, Qwen2Config
from transformers import LlamaForCausalLM as Llama
from transformers import OPTForCausalLM as Opt
from transformers import Qwen2ForCausalLM as Qwen2

from handheld.runtime.flash import FeedForward, LayerSelector, ModelConfig, PackSpec, PackWriter

VOCAB = 320
POSITIONS = 160


@dataclass(frozen=True)
class Checkpoint:
    model: PreTrainedModel
    path: Path
    _generated: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def logits(self, tokens: list[int]) -> np.ndarray:
        """(n, vocab): what follows each token."""
        with torch.no_grad():
            return self.model(torch.tensor([tokens])).logits[0].numpy()

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        key = (*prompt, count)
        if key not in self._generated:
            self._generated[key] = self._generate(prompt, count)
        return self._generated[key]

    def _generate(self, prompt: list[int], count: int) -> list[int]:
        given = torch.tensor([prompt])
        with torch.no_grad():
            out = self.model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False, pad_token_id=0
            )
        return out[0, len(prompt) :].tolist()


def make_llama(**fields: Any) -> PreTrainedModel:
    return Llama(LlamaConfig(**{**_llama_shape(), "tie_word_embeddings": False, "attention_bias": True, **fields}))


def make_qwen2(**fields: Any) -> PreTrainedModel:
    return Qwen2(Qwen2Config(**{**_llama_shape(), "tie_word_embeddings": True, **fields}))


def make_opt(**fields: Any) -> PreTrainedModel:
    shape = dict(
        vocab_size=VOCAB, hidden_size=96, word_embed_proj_dim=96, ffn_dim=160, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=POSITIONS, eos_token_id=None, dropout=0.0,
    )  # fmt: skip
    return Opt(OPTConfig(**{**shape, **fields}))


MODELS = {"llama": make_llama, "qwen2": make_qwen2, "opt": make_opt}


def _llama_shape() -> dict[str, Any]:
    return dict(
        vocab_size=VOCAB, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip


def make_checkpoint(
    path: Path, kind: str, dtype: str = "fp32", selector: str = "none", **fields: Any
) -> Checkpoint:
    """A model of random weights, biases and norms included, and its pack at `path`."""
    torch.manual_seed(0)
    model = MODELS[kind](**fields).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = 0.2 if weight.ndim == 2 else 0.1
            weight.copy_(torch.randn_like(weight) * spread + (1.0 if "norm.weight" in name else 0.0))
    write_pack(path, model, dtype, selector)
    return Checkpoint(model, path)


def write_pack(path: Path, model: PreTrainedModel, dtype: str, selector: str) -> None:
    config = model.config
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write = _write_opt if config.model_type == "opt" else _write_llama
    write(path, config, tensors, dtype, selector)


def _spec(config: Any, dtype: str, selector: str, **fields: Any) -> PackSpec:
    size = {"none": 0, "low_rank": 32, "ternary": 32}[selector]
    return PackSpec(
        layers=config.num_hidden_layers, d_model=config.hidden_size, dtype=dtype, selector=selector,
        selector_size=size, **fields,
    )  # fmt: skip


def _selector(kind: str) -> LayerSelector | None:
    return LayerSelector(threshold=0.02) if kind == "ternary" else None


def _config(config: Any, dtype: str, **fields: Any) -> ModelConfig:
    eos = () if config.eos_token_id is None else (config.eos_token_id,)
    return ModelConfig(
        vocab=config.vocab_size,
        heads=config.num_attention_heads,
        max_positions=config.max_position_embeddings,
        eos=eos,
        dtypes={"embed": dtype, "attention": dtype, "head": dtype},
        **fields,
    )


def _write_llama(path: Path, config: Any, tensors: dict[str, np.ndarray], dtype: str, selector: str) -> None:
    spec = _spec(config, dtype, selector, d_ff=config.intermediate_size)
    head_dim = config.hidden_size // config.num_attention_heads
    with PackWriter(path, spec) as writer:
        described = _config(
            config, dtype, architecture="llama", kv_heads=config.num_key_value_heads, head_dim=head_dim, norm="rms",
            norm_eps=config.rms_norm_eps, position="rope",
        )  # fmt: skip
        writer.add_resident("model.config", described.encode())
        writer.add_matrix("model.embed", tensors["model.embed_tokens.weight"], dtype)
        if not config.tie_word_embeddings:
            writer.add_matrix("model.head", tensors["lm_head.weight"], dtype)
        frequencies = 10000.0 ** -(np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        writer.add_resident("model.rope_inv_freq", frequencies.astype(np.float32))
        writer.add_resident("model.norm", tensors["model.norm.weight"])
        for layer in range(spec.layers):
            old, new = f"model.layers.{layer}.", f"model.{layer}."
            writer.add_layer(
                FeedForward(**{part: tensors[f"{old}mlp.{part}_proj.weight"] for part in ("gate", "up", "down")}),
                selector=_selector(selector),
            )
            writer.add_resident(new + "attn_norm", tensors[old + "input_layernorm.weight"])
            writer.add_resident(new + "ffn_norm", tensors[old + "post_attention_layernorm.weight"])
            _add_attention(writer, new, tensors, old + "self_attn.", ("q", "k", "v", "o"), dtype)


def _write_opt(path: Path, config: Any, tensors: dict[str, np.ndarray], dtype: str, selector: str) -> None:
    spec = _spec(
        config, dtype, selector, d_ff=config.ffn_dim, activation="relu", gated=False, up_bias=True, down_bias=True
    )
    head_dim = config.hidden_size // config.num_attention_heads
    with PackWriter(path, spec) as writer:
        described = _config(
            config, dtype, architecture="opt", kv_heads=config.num_attention_heads, head_dim=head_dim, norm="layer",
            norm_eps=1e-5, position="learned", position_offset=2,
        )  # fmt: skip
        writer.add_resident("model.config", described.encode())
        writer.add_matrix("model.embed", tensors["model.decoder.embed_tokens.weight"], dtype)
        writer.add_resident("model.positions", tensors["model.decoder.embed_positions.weight"])
        _add_norm(writer, "model.norm", tensors, "model.decoder.final_layer_norm")
        for layer in range(spec.layers):
            old, new = f"model.decoder.layers.{layer}.", f"model.{layer}."
            writer.add_layer(
                FeedForward(
                    up=tensors[old + "fc1.weight"], up_bias=tensors[old + "fc1.bias"],
                    down=tensors[old + "fc2.weight"], down_bias=tensors[old + "fc2.bias"],
                ),
                selector=_selector(selector),
            )  # fmt: skip
            _add_norm(writer, new + "attn_norm", tensors, old + "self_attn_layer_norm")
            _add_norm(writer, new + "ffn_norm", tensors, old + "final_layer_norm")
            _add_attention(writer, new, tensors, old + "self_attn.", ("q", "k", "v", "out"), dtype)


def _add_norm(writer: PackWriter, new: str, tensors: dict[str, np.ndarray], old: str) -> None:
    writer.add_resident(new, tensors[old + ".weight"])
    writer.add_resident(new + "_bias", tensors[old + ".bias"])


def _add_attention(
    writer: PackWriter, new: str, tensors: dict[str, np.ndarray], old: str, names: tuple[str, ...], dtype: str
) -> None:
    for short, name in zip("qkvo", names, strict=True):
        writer.add_matrix(new + short, tensors[f"{old}{name}_proj.weight"], dtype)
        bias = tensors.get(f"{old}{name}_proj.bias")
        if bias is not None:
            writer.add_resident(f"{new}{short}_bias", bias)
