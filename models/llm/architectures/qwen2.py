"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig
from . import llama
from .base import Architecture, refuse


def decoder_config(config: Any) -> DecoderConfig:
    """transformers' Qwen2Config."""
    refuse({"use_sliding_window": bool(config.use_sliding_window)}, type(config).__name__)
    return llama.decoder_config(config)


ARCHITECTURE = Architecture("Qwen2ForCausalLM", decoder_config, llama.OUTER, llama.LAYER, gguf_name="qwen2")
