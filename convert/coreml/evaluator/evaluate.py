"""Evaluating a program on the CPU, as its types say or in fp32 throughout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import ExportError
from .ops import OPS, Operands
from .program import Constant, MLProgram, Operation, Variable


@dataclass(frozen=True)
class Overflow:
    """The first operation that made infinity or NaN of finite inputs."""

    operation: Operation
    value: str


@dataclass(frozen=True)
class Evaluation:
    """Outputs by name (fp32 where floating), and the overflow on the way to them, if any."""

    outputs: dict[str, np.ndarray]
    overflow: Overflow | None


@dataclass(frozen=True)
class EvaluatedOperation:
    """One evaluated operation, with what it was given and what it gave; floating tensors are fp32."""

    operation: Operation
    given: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def evaluate(program: MLProgram, inputs: Mapping[str, np.ndarray], *, typed: bool = True) -> Evaluation:
    """Evaluate a program.

    Every operation computes in fp32. `typed` rounds its floating outputs to fp16 where the program's type says
    fp16, and values over 65504 become infinite; otherwise everything stays fp32, with the program's own constants
    (which an fp16 program stores in fp16). Sums inside one operation are fp32 in both: a device that accumulates
    in fp16 may overflow where this does not.

    Args:
        inputs: every input by name, in the program's shapes.

    Raises ExportError for inputs that are not the program's, an operation whose inputs the evaluator does not know,
    and one that yields another shape than the program declares.
    """
    overflow = None
    values: dict[str, Tensor] = {}
    for step in evaluated_operations(program, inputs, typed=typed):
        if overflow is None:
            overflow = _overflow(step)
        for variable, output in zip(step.operation.outputs, step.outputs):
            if variable.name in program.outputs:
                values[variable.name] = output
    given = {variable.name: torch.from_numpy(inputs[variable.name]) for variable in program.inputs}
    return Evaluation({name: (values | given)[name].numpy() for name in program.outputs}, overflow)


def evaluated_operations(
    program: MLProgram, inputs: Mapping[str, np.ndarray], *, typed: bool
) -> Iterator[EvaluatedOperation]:
    """Evaluate one operation after the other; values are dropped after their last use."""
    values = _given(program, inputs, typed)
    left = Counter(v.name for operation in program.operations for v in variables(operation))
    with torch.inference_mode():
        for operation in program.operations:
            given = tuple(values[v.name] for v in variables(operation))
            outputs = _run(operation, values, typed)
            for v in variables(operation):
                left[v.name] -= 1
                if not left[v.name]:
                    del values[v.name]
            values |= {v.name: output for v, output in zip(operation.outputs, outputs) if left[v.name]}
            yield EvaluatedOperation(operation, given, outputs)


def variables(operation: Operation) -> list[Variable]:
    """What an operation takes that is not constant; an input that is given twice is there twice."""
    operands = [o for value in operation.inputs.values() for o in (value if isinstance(value, tuple) else (value,))]
    return [o for o in operands if not isinstance(o, Constant)]


def _given(program: MLProgram, inputs: Mapping[str, np.ndarray], typed: bool) -> dict[str, Tensor]:
    wanted = {v.name: v for v in program.inputs}
    faults = [f'"{name}" is not an input' for name in inputs if name not in wanted]
    for name, v in wanted.items():
        if name not in inputs:
            faults.append(f'"{name}" is missing')
        elif v.shape is not None and tuple(inputs[name].shape) != v.shape:
            faults.append(f'"{name}" is {tuple(inputs[name].shape)}, the program takes {v.shape}')
    if faults:
        raise ExportError(f"Reference evaluator: wrong inputs: {'; '.join(faults)}.")
    return {name: _as_typed(torch.from_numpy(inputs[name]), v, typed) for name, v in wanted.items()}


def _run(operation: Operation, values: Mapping[str, Tensor], typed: bool) -> tuple[Tensor, ...]:
    operands = Operands(operation, values)
    try:
        results = OPS[operation.kind](operands)
    except (
        RuntimeError,
        IndexError,
        TypeError,
        ValueError,
    ) as error:  # torch's words on a malformed operation
        raise error if isinstance(error, ExportError) else operands.error(str(error)) from error
    operands.finish()
    outputs = results if isinstance(results, list) else [results]
    for variable, output in zip(operation.outputs, outputs, strict=True):
        if variable.shape is not None and tuple(output.shape) != variable.shape:
            raise operands.error(f"{tuple(output.shape)} was computed, the program says {variable.shape}")
    return tuple(_as_typed(output, v, typed) for v, output in zip(operation.outputs, outputs))


def _as_typed(value: Tensor, variable: Variable, typed: bool) -> Tensor:
    if variable.dtype == "fp16" and typed:
        return value.half().float()
    return value.to({"int32": torch.int32, "bool": torch.bool}.get(variable.dtype, torch.float32))


def _overflow(step: EvaluatedOperation) -> Overflow | None:
    for output in step.outputs:
        if output.isfinite().all():
            continue
        if all(x.isfinite().all() for x in step.given):
            return Overflow(step.operation, "NaN" if output.isnan().any() else "infinity")
    return None
