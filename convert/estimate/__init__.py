"""A verdict before export: what a decoder would take on a phone that is not here. An estimate, never a figure."""

from .device import DEVICES, DeviceTable, read_device
from .latency import Calibration, Estimate, estimate_work, published, recalibrated
from .work import Work, work_of

__all__ = [
    "DEVICES",
    "Calibration",
    "DeviceTable",
    "Estimate",
    "Work",
    "estimate_work",
    "published",
    "read_device",
    "recalibrated",
    "work_of",
]
