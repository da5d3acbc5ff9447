"""From a module to a graph of ATen ops with fixed shapes."""

from __future__ import annotations

import operator
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from ..errors import ExportError
from .nodes import constant_of, dtype_of, is_constant, shape_of
from .normal import normalise


def capture(model: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """Export `model` to a graph of ATen ops with fixed shapes; weights are attributes of the result.

    What the model computes of its weights alone is computed here, once, and the graph is brought to the form that
    rewrites and lowerings know (`normal.normalise`).

    Raises ExportError for a model that torch.export refuses, or that holds what an artefact cannot.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(model.eval(), inputs)
    except Exception as error:
        raise ExportError(
            f"torch.export does not take {type(model).__name__}: {str(error).strip().splitlines()[0]}"
        ) from error
    module = program.module(check_guards=False)
    normalise(module)
    fold_constants(module)
    return module


# Make a tensor without reading one.
_CREATIONS = (
    torch.ops.aten.arange.default,
    torch.ops.aten.arange.start,
    torch.ops.aten.arange.start_step,
    torch.ops.aten.full.default,
    torch.ops.aten.new_full.default,
    torch.ops.aten.new_ones.default,
    torch.ops.aten.new_zeros.default,
    torch.ops.aten.ones.default,
    torch.ops.aten.zeros.default,
)
# Values of a created tensor that becomes a weight.
_LARGEST_CREATED = 4096


def fold_constants(module: fx.GraphModule) -> int:
    """Replace, in place, each op whose tensors are all weights by its result. Returns how many were replaced.

    Only ops that give no more values than they take: an artefact does not grow. Numbers that an op makes of
    nothing, such as a timestep or the indices of a mask, count as weights where they are few. A head that numbers
    its channels in another order, a scale that gains axes and a sum of weights become plain weights, which rewrites
    and delegates know as such.
    """
    count = 0
    for node in list(module.graph.nodes):
        value = node.meta.get("val")
        # One of several results is computed from what they are all computed from.
        maker = node.args[0] if node.target is operator.getitem else node
        if node.op != "call_function" or not isinstance(value, Tensor) or not _is_aten(maker):
            continue
        if maker.target in _CREATIONS:
            taken = _LARGEST_CREATED
        elif maker.all_input_nodes and all(_is_weight(x) for x in maker.all_input_nodes):
            taken = sum(constant_of(x).numel() for x in maker.all_input_nodes)
        else:
            continue
        if value.numel() > taken or maker.target._schema.is_mutable:
            continue
        with module.graph.inserting_before(node):
            new = module.graph.get_attr(_store(module, _computed(node)))
        new.meta = {**node.meta, "val": torch.empty_like(value, device="meta")}
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
        count += 1
    if count:
        module.graph.eliminate_dead_code()
        module.recompile()
    return count


def _is_aten(node: Any) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and isinstance(node.target, OpOverload)


def _is_weight(node: fx.Node) -> bool:
    return is_constant(node) and isinstance(node.meta.get("val"), Tensor)


def _computed(node: fx.Node) -> Tensor:
    def tensor(x: fx.Node) -> Tensor:
        # Of a creation's operand nothing but the dtype is read.
        return constant_of(x).detach() if is_constant(x) else torch.empty(shape_of(x), dtype=dtype_of(x))

    maker = node.args[0] if node.target is operator.getitem else node
    assert _is_aten(maker)
    args, kwargs = fx.map_arg((maker.args, maker.kwargs), tensor)
    with torch.no_grad():
        result = maker.target(*args, **kwargs)  # type: ignore[operator]
    return (result if maker is node else result[node.args[1]]).contiguous().clone()


def _store(module: fx.GraphModule, value: Tensor) -> str:
    number = 0
    while hasattr(module, f"_folded_{number}"):
        number += 1
    module.register_buffer(f"_folded_{number}", value)
    return f"_folded_{number}"
