"""Architectures by the name that checkpoints give them: one file each, one line here."""

from __future__ import annotations

from .base import Architecture
from .llama import ARCHITECTURE as LLAMA
from .opt import ARCHITECTURE as OPT
from .qwen2 import ARCHITECTURE as QWEN2

# The class in config.json -> architecture.
ARCHITECTURES: dict[str, Architecture] = {a.class_name: a for a in (LLAMA, QWEN2, OPT)}
# `general.architecture` of a GGUF file -> architecture.
GGUF_ARCHITECTURES: dict[str, Architecture] = {a.gguf_name: a for a in ARCHITECTURES.values() if a.gguf_name}

__all__ = ["ARCHITECTURES", "GGUF_ARCHITECTURES", "Architecture"]
