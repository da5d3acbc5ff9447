"""Text through a packed model: its tokenizer, options for a memory limit, what decoding costs and what it loses."""

from .options import model_options
from .profile import DecodeProfile, profile_decoding
from .quality import ModeQuality, quality
from .tokenizer import PackTokenizer
from .tracing import record_trace

__all__ = [
    "DecodeProfile",
    "ModeQuality",
    "PackTokenizer",
    "model_options",
    "profile_decoding",
    "quality",
    "record_trace",
]
