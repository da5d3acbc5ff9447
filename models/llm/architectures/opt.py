"""OPT: ReLU, layer norms before each half of a layer, learned positions, biases everywhere."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig
from .base import Architecture, eos_of, refuse

# Rows of the position table before that of position 0, as transformers' OPTLearnedPositionalEmbedding has them.
_POSITION_OFFSET = 2
# transformers makes OPT's norms with torch's default.
_NORM_EPS = 1e-5

OUTER = {
    "embed": "model.decoder.embed_tokens.weight",
    "head": "lm_head.weight",
    "positions": "model.decoder.embed_positions.weight",
    "norm": "model.decoder.final_layer_norm.weight",
    "norm_bias": "model.decoder.final_layer_norm.bias",
}
_LAYER = {
    "attn_norm": "self_attn_layer_norm.weight",
    "attn_norm_bias": "self_attn_layer_norm.bias",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.out_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.out_proj.bias",
    "ffn_norm": "final_layer_norm.weight",
    "ffn_norm_bias": "final_layer_norm.bias",
    "up": "fc1.weight",
    "up_bias": "fc1.bias",
    "down": "fc2.weight",
    "down_bias": "fc2.bias",
}


def decoder_config(config: Any) -> DecoderConfig:
    """transformers' OPTConfig."""
    refuse(
        {
            "do_layer_norm_before false": not config.do_layer_norm_before,
            "_remove_final_layer_norm": config._remove_final_layer_norm,
            "enable_bias false": not config.enable_bias,
            "layer_norm_elementwise_affine false": not config.layer_norm_elementwise_affine,
            "word_embed_proj_dim other than hidden_size": config.word_embed_proj_dim != config.hidden_size,
        },
        "OPTForCausalLM",
    )
    return DecoderConfig(
        family="opt",
        vocab=config.vocab_size,
        layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        d_ff=config.ffn_dim,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        activation=config.activation_function,
        norm="layer",
        norm_eps=_NORM_EPS,
        max_positions=config.max_position_embeddings,
        tied=config.tie_word_embeddings,
        eos=eos_of(config),
        position_offset=_POSITION_OFFSET,
    )


ARCHITECTURE = Architecture(
    "OPTForCausalLM",
    decoder_config,
    OUTER,
    {ours: f"model.decoder.layers.{{}}.{name}" for ours, name in _LAYER.items()},
)
