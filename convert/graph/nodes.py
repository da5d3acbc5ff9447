"""What a node of a captured graph says: its op, arguments, shape, dtype, constant, and module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the tensor that a node yields."""
    return tuple(node.meta["val"].shape)


def dtype_of(node: fx.Node) -> torch.dtype:
    """Dtype of the tensor that a node yields."""
    return node.meta["val"].dtype


def is_call(node: Any, *targets: Any) -> bool:
    """Whether `node` is a call of one of the ATen overloads."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_constant(node: Any) -> bool:
    """Whether `node` reads a parameter or buffer of the graph."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def constant_of(node: fx.Node) -> Tensor:
    """The tensor that a `get_attr` node reads."""
    owner: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        owner = getattr(owner, part)
    return owner


def argument(node: fx.Node, index: int, default: Any = None) -> Any:
    """A positional argument, or the default that the op's schema gives it."""
    if len(node.args) > index:
        return node.args[index]
    schema = node.target._schema.arguments[index]
    return node.kwargs.get(schema.name, schema.default_value if schema.has_default_value() else default)


def keywords(node: fx.Node) -> dict[str, Any]:
    """The keyword arguments of a call of an ATen overload that are not what its schema gives anyway.

    `dtype` is left out where it is the dtype of the first operand: the op computes in that in any case.
    """
    if node.op != "call_function" or not node.kwargs or not hasattr(node.target, "_schema"):
        return {}
    defaults = {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()}
    found = {
        name: value
        for name, value in node.kwargs.items()
        # No `==` on a value that may be a node, nor 1 for True.
        if name not in defaults or type(value) is not type(defaults[name]) or value != defaults[name]
    }
    first = node.args[0] if node.args else None
    if isinstance(first, fx.Node) and found.get("dtype") == getattr(first.meta.get("val"), "dtype", None):
        found.pop("dtype", None)
    return found


def module_of(node: fx.Node) -> str:
    """Path of the module that a node comes from, as in `up_blocks.1.resnets.0.conv1`."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""
