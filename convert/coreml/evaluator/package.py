"""Reading an `.mlpackage` into a `MLProgram`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from handheld.runtime.errors import RuntimeMissing

from ...errors import ExportError
from ...quiet import quiet
from .ops import OPS
from .program import DTYPES, Constant, MLProgram, Operand, Operation, Variable


class UnsupportedProgram(ExportError):
    """A program that is whole, and holds something that the reference evaluator does not know."""


def load_program(path: str | Path, function: str = "main") -> MLProgram:
    """Read one function of an `.mlpackage` folder.

    Its hash is the caller's business. Compressed weights (`constexpr_*`) are expanded.

    Raises:
        RuntimeMissing: no coremltools.
        ExportError: a package that it cannot read, whose own words are in the message, or without that function.
        UnsupportedProgram: operations or types that are not in the evaluator's table, all of them by name with
            their outputs, before anything is computed.
    """
    path = Path(path)
    with quiet():
        try:
            import coremltools as ct
            from coremltools.converters.mil.frontend.milproto.load import load
        except ImportError as error:
            raise RuntimeMissing(
                f"The reference evaluator reads Core ML programs with coremltools, which is not here ({error}). "
                "Install it with: pip install 'handheld[ios]'"
            ) from error
        try:
            model = ct.models.MLModel(str(path), skip_model_load=True)
            spec = model.get_spec()
            if (kind := spec.WhichOneof("Type")) != "mlProgram":
                raise UnsupportedProgram(f"{path.name} is a Core ML {kind}; only an ML program can be evaluated.")
            # Before loading: coremltools' own loader stops at the first thing that it does not know.
            _refuse_unknown(spec.mlProgram, path.name)
            loaded = load(spec, spec.specificationVersion, model.weights_dir or "")
        except UnsupportedProgram:
            raise
        except Exception as error:  # whatever protobuf, the blob reader and the loader raise
            raise ExportError(
                f"{path.name} is no whole Core ML package: {type(error).__name__}: {error}. Export it again."
            ) from error
        if function not in loaded.functions:
            raise ExportError(
                f"{path.name} has no function {function!r}; it has {', '.join(loaded.functions)}. Export it again."
            )
        return _read(loaded.functions[function], path.name)


def _refuse_unknown(program: Any, name: str) -> None:
    unknown = [
        f"{op.type} ({op.outputs[0].name if op.outputs else 'no output'})"
        for function in program.functions.values()
        for op in function.block_specializations[function.opset].operations
        if op.type not in OPS and op.type != "const" and not op.type.startswith("constexpr_")
    ]
    if unknown:
        raise UnsupportedProgram(
            f"{name} holds {len(unknown)} operations that the reference evaluator does not know: "
            f"{', '.join(unknown)}. Add each to convert/coreml/evaluator/ops.py, or verify on a Mac."
        )


def _read(function: Any, name: str) -> MLProgram:
    operations = []
    parameter = ""
    for op in function.operations:
        if op.op_type == "const" or op.op_type.startswith("constexpr_"):
            continue
        # MIL's defaults belong to the operation's version, which the loader has picked.
        given = {key: value for key, value in op.default_inputs().items() if value is not None} | dict(op.inputs)
        inputs = {key: _operand(value, name) for key, value in given.items()}
        operands = [o for value in inputs.values() for o in (value if isinstance(value, tuple) else (value,))]
        own = [o.name for o in operands if isinstance(o, Constant) and o.name.startswith("p_")]
        parameter = own[0] if own else parameter
        operations.append(Operation(op.op_type, inputs, tuple(_variable(v, name) for v in op.outputs), parameter))
    return MLProgram(
        tuple(_variable(v, name) for v in function.inputs.values()),
        tuple(v.name for v in function.outputs),
        tuple(operations),
    )


def _operand(value: Any, name: str) -> Operand:
    if isinstance(value, list | tuple) and any(hasattr(item, "op") for item in value):
        return tuple(_single(item, name) for item in value)
    return _single(value, name)


def _single(value: Any, name: str) -> Constant | Variable:
    op = getattr(value, "op", None)
    if op is not None and op.op_type == "const":
        return Constant(value.name, op.val.val)
    if op is not None and op.op_type.startswith("constexpr_"):
        return Constant(value.name, np.asarray(op.materialized_val_inference()))
    if hasattr(value, "sym_type"):
        return _variable(value, name)
    return Constant("", value)  # a default


def _variable(var: Any, name: str) -> Variable:
    from coremltools.converters.mil.mil import types

    dtype = types.builtin_to_string(var.dtype)
    if dtype not in DTYPES:
        raise UnsupportedProgram(
            f"{name} computes {var.name} in {dtype}; the reference evaluator knows {', '.join(DTYPES)}."
        )
    fixed = all(isinstance(size, int | np.integer) for size in var.shape)
    return Variable(var.name, dtype, tuple(int(size) for size in var.shape) if fixed else None)
