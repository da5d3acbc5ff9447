"""From a module to a graph of ATen ops with fixed shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ExportError
from .nodes import constant_of, is_constant
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


def fold_constants(module: fx.GraphModule) -> int:
    """Replace, in place, each op whose tensors are all weights by its result. Returns how many were replaced.

    Only ops that give no more values than they take: an artefact does not grow. A head that numbers its channels in
    another order, a scale that gains axes and a sum of weights become plain weights, which rewrites and delegates
    know as such.
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        if not all(is_constant(x) and isinstance(x.meta.get("val"), Tensor) for x in node.all_input_nodes):
            continue
        taken = sum(constant_of(x).numel() for x in node.all_input_nodes)
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.numel() > taken or node.target._schema.is_mutable:
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


def _computed(node: fx.Node) -> Tensor:
    def tensor(x: Any) -> Any:
        return constant_of(x).detach()

    args, kwargs = fx.map_arg((node.args, node.kwargs), tensor)
    with torch.no_grad():
        return node.target(*args, **kwargs).contiguous().clone()


def _store(module: fx.GraphModule, value: Tensor) -> str:
    number = 0
    while hasattr(module, f"_folded_{number}"):
        number += 1
    module.register_buffer(f"_folded_{number}", value)
    return f"_folded_{number}"
