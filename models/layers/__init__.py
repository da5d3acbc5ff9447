"""Layers that a decoder declares, of a few kinds from which everything else follows."""

from .flow import Border, Flow, Function, Taps, bordered
from .kinds import (
    WHOLE_FRAME,
    Chain,
    FirstAlone,
    Framewise,
    Growth,
    Layer,
    Residual,
    WholeOnly,
    Window,
    declared,
    in_turn,
    run_all,
    timing_of,
)
from .timing import Timing

__all__ = [
    "WHOLE_FRAME",
    "Border",
    "Chain",
    "FirstAlone",
    "Flow",
    "Framewise",
    "Function",
    "Growth",
    "Layer",
    "Residual",
    "Taps",
    "Timing",
    "WholeOnly",
    "Window",
    "bordered",
    "declared",
    "in_turn",
    "run_all",
    "timing_of",
]
