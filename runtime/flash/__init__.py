"""The flash engine: feed-forward layers of models larger than their memory, read from storage as needed.

Write a pack with `PackWriter`, open it with `open_pack`; after "LLM in a flash", arXiv 2312.11514; docs/flash.md.
"""

from .engine import MOST, UNLIMITED, Model, ModelOptions, Pack, Session, SessionOptions, open_pack
from .errors import FlashError
from .layout import PackSpec
from .model import ModelConfig
from .pack import FeedForward, LayerSelector, PackWriter

__all__ = [
    "MOST",
    "UNLIMITED",
    "FeedForward",
    "FlashError",
    "LayerSelector",
    "Model",
    "ModelConfig",
    "ModelOptions",
    "Pack",
    "PackSpec",
    "PackWriter",
    "Session",
    "SessionOptions",
    "open_pack",
]
