"""An ML program as a plain list of operations that torch can evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The types of values that the evaluator knows, by MIL's names.
DTYPES = ("fp16", "fp32", "int32", "bool")


@dataclass(frozen=True)
class Constant:
    """A value that the program stores: an array, a number, a boolean or a string."""

    name: str
    value: Any


@dataclass(frozen=True)
class Variable:
    """A value that is given or computed.

    Attributes:
        dtype: one of DTYPES, as the program declares it.
        shape: None where a dimension is not fixed.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None


Operand = Constant | Variable | tuple[Constant | Variable, ...]


@dataclass(frozen=True)
class Operation:
    """One operation of a program.

    Attributes:
        inputs: by MIL's names; those left out in the program are there with MIL's defaults, if they have one.
        parameter: of the exported module, which it reads or, failing that, the last one read before it in the
            program's order: `p_conv_in_conv_bias`, dots written as underscores. Empty where there is none.
    """

    kind: str
    inputs: Mapping[str, Operand]
    outputs: tuple[Variable, ...]
    parameter: str = ""

    @property
    def name(self) -> str:
        """Of the first output, which is what Core ML's own reports call the operation."""
        return self.outputs[0].name


@dataclass(frozen=True)
class MLProgram:
    """One function of an ML program, in the order of evaluation."""

    inputs: tuple[Variable, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
