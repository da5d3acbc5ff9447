"""Lowering to an ExecuTorch program behind a delegate, and the account of what was delegated."""

from __future__ import annotations

import collections
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.traceback import NodeSource

# Why a partitioner refused a node; empty where it would not have.
Why = Callable[[fx.Node], str]


# The method that ExecuTorch's own tools run.
METHOD = "forward"


def to_edge(methods: Mapping[str, tuple[fx.GraphModule, tuple[Tensor, ...]]], partitioner: Any) -> Any:
    """Graphs with their inputs as the methods of an edge program, partitioned and lowered to the delegate."""
    from executorch.exir import to_edge_transform_and_lower

    with _histories_shared():
        programs = {name: torch.export.export(graph, inputs) for name, (graph, inputs) in methods.items()}
        return to_edge_transform_and_lower(programs, partitioner=[partitioner])


@contextmanager
def _histories_shared() -> Iterator[None]:
    """Nodes carry the history of what they were made from. Nothing changes one, yet each of ExecuTorch's thirty
    passes copies all of it for every node.
    """
    NodeSource.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del NodeSource.__deepcopy__  # type: ignore[attr-defined]


def write(edge: Any, path: Path) -> None:
    """Write a `.pte` file; its bytes have reached the disk when this returns.

    Inputs are read where the caller has them; with room for them in its plan, a program would copy them.
    """
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    config = ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
    with open(path, "wb") as file:
        edge.to_executorch(config).write_to_file(file)
        file.flush()
        os.fsync(file.fileno())


def delegation_of(edge: Any, graphs: Iterable[fx.GraphModule], why: Why) -> dict[str, object]:
    """For the manifest: delegates, what is inside them and outside by op, and why what is outside was refused.

    Over all methods. To be called before `write`, whose memory planning adds calls of its own.

    Args:
        graphs: that were lowered, one per method.
    """
    outside = [n for name in sorted(edge.methods) for n in _calls(edge.exported_program(name).graph_module.graph)]
    inside = collections.Counter(_name(n) for part in delegates_of(edge) for n in _calls(part.graph))
    return {
        "delegates": len(delegates_of(edge)),
        "ops_before_lowering": sum(n.op == "call_function" for graph in graphs for n in graph.graph.nodes),
        "ops_inside": dict(sorted(inside.items())),
        "ops_outside": dict(collections.Counter(_name(n) for n in outside)),
        "refused": [{"op": _name(n), "shape": _shape(n), "reason": why(n)} for n in outside],
    }


def delegates_of(edge: Any) -> list[fx.GraphModule]:
    """What each delegate of each method was given to compute, as graphs that run in torch."""
    from executorch.exir.lowered_backend_module import LoweredBackendModule

    methods = [edge.exported_program(name) for name in sorted(edge.methods)]
    parts = [part for method in methods for part in method.graph_module.children()]
    return [part.original_module.module() for part in parts if isinstance(part, LoweredBackendModule)]


def _calls(graph: fx.Graph) -> Iterator[fx.Node]:
    """Calls of ops: neither of a delegate, which is a higher-order op, nor of tuples' elements."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem and hasattr(node.target, "_schema"):
            yield node


def _shape(node: fx.Node) -> list[int]:
    """Of what a node yields; of the first of several."""
    value = node.meta["val"]
    return list((value[0] if isinstance(value, list | tuple) else value).shape)


def _name(node: fx.Node) -> str:
    return node.target._schema.name  # type: ignore[union-attr]
