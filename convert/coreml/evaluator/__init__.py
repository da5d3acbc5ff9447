"""A reference evaluator of Core ML ML programs: torch on the CPU, on any machine, no device involved."""

from .evaluate import Evaluation, Overflow, evaluate
from .package import UnsupportedProgram, load_program
from .program import MLProgram
from .verify import REFERENCE_RUNTIMES, verify_coreml, with_reference

__all__ = [
    "REFERENCE_RUNTIMES",
    "Evaluation",
    "MLProgram",
    "Overflow",
    "UnsupportedProgram",
    "evaluate",
    "load_program",
    "verify_coreml",
    "with_reference",
]
