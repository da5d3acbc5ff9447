"""Decoder-only language models: their checkpoints, tensor by tensor under one set of names, and a plain forward."""

from .blocks import Blocks, dense
from .checkpoint import Checkpoint
from .config import DecoderConfig
from .decoder import Decoder
from .opening import open_checkpoint

__all__ = ["Blocks", "Checkpoint", "Decoder", "DecoderConfig", "dense", "open_checkpoint"]
