"""What a model would cost per token elsewhere: storage curves, recorded traces and cache policies, in plain Python.

A `Device` holds what storage and memory give, a `Trace` which neurons each token needed; `replay` plays one against
the other. The model is that of "LLM in a flash" (arXiv 2312.11514, section 2): reading + memory management +
arithmetic, reads at the throughput that their size and number in flight give.
"""

from .calibrate import calibrate
from .cost import TokenCost, Traffic, token_cost
from .device import DEVICES, Device, StorageCurve, StoragePoint, read_device
from .policies import POLICIES
from .replay import ReplayOptions, ReplayResult, replay
from .trace import Trace, TraceRecorder, TraceShape, read_trace

__all__ = [
    "DEVICES",
    "POLICIES",
    "Device",
    "ReplayOptions",
    "ReplayResult",
    "StorageCurve",
    "StoragePoint",
    "TokenCost",
    "Trace",
    "TraceRecorder",
    "TraceShape",
    "Traffic",
    "calibrate",
    "read_device",
    "read_trace",
    "replay",
    "token_cost",
]
