"""Llama, and what shares its architecture: SmolLM2, TinyLlama, Llama 2 and 3."""

from __future__ import annotations

from typing import Any

from ...errors import ModelError
from ..config import DecoderConfig
from .base import Architecture, eos_of, refuse

# Their frequencies depend on the length of the text.
_UNSUPPORTED_ROPE = ("dynamic", "longrope")

OUTER = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight", "norm": "model.norm.weight"}
LAYER = {
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "o": "model.layers.{}.self_attn.o_proj.weight",
    "q_bias": "model.layers.{}.self_attn.q_proj.bias",
    "k_bias": "model.layers.{}.self_attn.k_proj.bias",
    "v_bias": "model.layers.{}.self_attn.v_proj.bias",
    "o_bias": "model.layers.{}.self_attn.o_proj.bias",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
}


def decoder_config(config: Any) -> DecoderConfig:
    """transformers' LlamaConfig, or one that names its fields alike."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    refuse({"mlp_bias": bool(getattr(config, "mlp_bias", False))}, type(config).__name__)
    kind = config.rope_parameters.get("rope_type", "default")
    if kind in _UNSUPPORTED_ROPE:
        raise ModelError(f"Rotary positions of type {kind} depend on the length of the text: not supported.")
    rope = LlamaRotaryEmbedding(config)
    return DecoderConfig(
        family="llama",
        vocab=config.vocab_size,
        layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        d_ff=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        activation=config.hidden_act,
        norm="rms",
        norm_eps=config.rms_norm_eps,
        max_positions=config.max_position_embeddings,
        tied=config.tie_word_embeddings,
        eos=eos_of(config),
        rope_scale=float(rope.attention_scaling),
        rope_inv_freq=rope.inv_freq.numpy(),
    )


ARCHITECTURE = Architecture(
    "LlamaForCausalLM", decoder_config, OUTER, LAYER, gguf_name="llama", gguf_interleaved=True
)
