"""Naming the operation at which a program stops computing what it should."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from handheld.models import PRESETS, TurboVAEDecoder

from ...quiet import quiet
from .evaluate import evaluated_operations
from .program import MLProgram, Operation

# Relative to the largest value of an operation's output. A single rounding to fp16 is 5e-4; a value that is off by
# this much is no rounding of the right one.
DIVERGED = 0.05

# The smallest normal fp16. What is below may round to zero, and safe_rms_norm means it to; where it does harm, the
# operation that takes it shows.
_TINY = torch.finfo(torch.float16).tiny

Found = tuple[Operation, float] | None


def first_rounded_off(program: MLProgram, inputs: Mapping[str, np.ndarray], above: float = DIVERGED) -> Found:
    """The first operation at which the program as typed and the same in fp32 are apart.

    Args:
        above: the largest difference over the largest fp32 magnitude of the operation's output.

    Returns:
        The operation and its relative difference, or None.
    """
    runs = zip(
        evaluated_operations(program, inputs, typed=True),
        evaluated_operations(program, inputs, typed=False),
        strict=True,
    )
    for rounded, exact in runs:
        for a, b in zip(rounded.outputs, exact.outputs):
            if not (relative := _relative(a, b)) <= above:  # also NaN
                return rounded.operation, relative
    return None


def first_mismatch(
    program: MLProgram, graph: fx.GraphModule, inputs: Mapping[str, np.ndarray], above: float = DIVERGED
) -> Found:
    """The first operation that in fp32 does not compute what the torch node of its name does.

    coremltools names an operation's output after the node that it converts. Operations whose node a pass of
    coremltools removed or reshaped are passed over.

    Args:
        graph: the rewritten graph that was lowered, in fp32.
        inputs: of the program, in the order of the graph's placeholders.
        above: as for `first_rounded_off`.
    """
    wanted = _node_values(graph, tuple(torch.from_numpy(inputs[v.name]) for v in program.inputs))
    for step in evaluated_operations(program, inputs, typed=False):
        for variable, found in zip(step.operation.outputs, step.outputs):
            node = wanted.get(re.sub(r"_cast_fp(16|32)$", "", variable.name))
            if node is not None and node.shape == found.shape and not (relative := _relative(found, node)) <= above:
                return step.operation, relative
    return None


def describe(operation: Operation) -> str:
    """An operation by kind and output name, with the source module."""
    text = f"{operation.kind} {operation.name}"
    if not operation.parameter:
        return text
    own = any(getattr(operand, "name", "") == operation.parameter for operand in operation.inputs.values())
    module = _module_of(operation.parameter)
    return f"{text}, of {module}" if own else f"{text}, the last parameters before it being those of {module}"


def _relative(found: Tensor, wanted: Tensor) -> float:
    if not wanted.is_floating_point() or not wanted.numel():
        return 0.0
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=_TINY)).item()


def _node_values(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Values of the graph's nodes, by the names that coremltools was given (see `convert.coreml.lower`)."""
    values = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, Tensor):
                values[n.name] = result
            return result

    with quiet(), torch.no_grad():
        Recorder(torch.export.export(graph, inputs).run_decompositions({}).module()).run(*inputs)
    return values


def _module_of(parameter: str) -> str:
    """The path of a module, from a name such as `p_conv_in_conv_bias_to_fp16`."""
    for written, module in _modules().items():
        if parameter.startswith(written):
            return module
    # Another model than ours: torch.export writes dots as underscores, and which is which is not known.
    name = re.sub(r"^p_|(_weight|_bias)?(_to_fp16)?$", "", parameter)
    return f"{name} (underscores may be dots)"


@functools.cache
def _modules() -> dict[str, str]:
    """Parameter names of our decoders as torch.export writes them, longest first -> the modules that own them."""
    found = {}
    with torch.device("meta"):
        for config in PRESETS.values():
            for name, _ in TurboVAEDecoder(config).named_parameters():
                found["p_" + name.replace(".", "_")] = name.rpartition(".")[0]
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))
