"""Streaming decode in eager mode, of any decoder that declares its layers."""

from .rows import Rows
from .spool import Spool
from .stages import ChainStage, chain_of
from .stream import Layered, stream_frames

__all__ = ["ChainStage", "Layered", "Rows", "Spool", "chain_of", "stream_frames"]
