"""The decoder as segments that decode any number of frames, call by call (docs/streaming.md)."""

from .cuts import Cut, PassCut, default_cuts
from .segments import SegmentModule, build
from .units import units_of

__all__ = ["Cut", "PassCut", "SegmentModule", "build", "default_cuts", "units_of"]
