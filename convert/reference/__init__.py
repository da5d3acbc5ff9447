"""A reference evaluator of Core ML ML programs: torch on the CPU, on any machine, no device involved."""

from .evaluate import Evaluation, Overflow, evaluate
from .program import Program, UnsupportedProgram, load_program
from .verify import verify_coreml, with_reference

__all__ = [
    "Evaluation",
    "Overflow",
    "Program",
    "UnsupportedProgram",
    "evaluate",
    "load_program",
    "verify_coreml",
    "with_reference",
]
