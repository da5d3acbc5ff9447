"""What a decoder asks of a device, read off the graph that a target lowers. Runs and allocates nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..choice.costs import kind_of, shipped_table
from ..graph.capture import capture
from ..graph.cost import multiply_adds, multiply_adds_of, traffic, weight_bytes
from ..graph.memory import peak_memory
from ..graph.nodes import argument, shape_of
from ..graph.rewrite import apply
from ..target import Target


@dataclass(frozen=True)
class Work:
    """Of one run. Bytes are of the precision that the target computes in.

    Attributes:
        frames: that a run makes.
        multiply_adds: of convolutions and products.
        padded_multiply_adds: the same, input and output channels of dense convolutions rounded up to the block
            that matrix units take (`channel_block` of the runtime's cost table).
        op_bytes: activations that an op reads in all, and writes, and how many ops do: `(read, written, ops)`.
        peak_bytes: of activations that are live at once, see `memory.peak_memory`.
        weight_bytes: of parameters and constants, uncompressed.
    """

    frames: int
    multiply_adds: int
    padded_multiply_adds: int
    op_bytes: tuple[tuple[int, int, int], ...]
    peak_bytes: int
    weight_bytes: int

    def moved_bytes(self, cache_bytes: int | None = None) -> int:
        """Bytes read and written by ops whose inputs or output a cache does not hold; None is no cache."""
        return sum(
            (read + written) * ops
            for read, written, ops in self.op_bytes
            if cache_bytes is None or max(read, written) > cache_bytes
        )


def work_of(model: nn.Module, latents: Tensor, target: Target, precision: str | None = None) -> Work:
    """What one run of a model on a target asks for, after the target's rewrites.

    Args:
        model: latents (1, C, T', H', W') to frames (1, 3, T, H, W). On the meta device, it needs no memory.
        latents: an example on the model's device, which fixes every shape.
        precision: a name in the target's `precisions`; None is its default.

    Raises ExportError for a model that torch.export refuses and a precision that the target lacks.
    """
    wanted = target.precision(precision or target.default_precision)
    graph = capture(model, (latents,))
    apply(graph, wanted.rewrites)
    return work_of_graph(graph, wanted.dtype, shipped_table("coreml").channel_block)


def work_of_graph(graph: fx.GraphModule, dtype: torch.dtype, channel_block: int) -> Work:
    """The same of a graph as it is, held in `dtype`."""
    moved = Counter((read, written) for _, read, written in traffic(graph, dtype))
    products = multiply_adds(graph)
    (result,) = graph.graph.find_nodes(op="output")[0].args[0]
    return Work(
        frames=shape_of(result)[0] * shape_of(result)[2],
        multiply_adds=products,
        padded_multiply_adds=products + sum(_padding(node, channel_block) for node in graph.graph.nodes),
        op_bytes=tuple((*sizes, ops) for sizes, ops in sorted(moved.items())),
        peak_bytes=peak_memory(graph, dtype).size_bytes,
        weight_bytes=weight_bytes(graph, dtype),
    )


def _padding(node: fx.Node, block: int) -> int:
    """Multiply-adds that a dense convolution has more with its channels rounded up."""
    if kind_of(node) not in ("conv", "pointwise_conv") or argument(node, 6) != 1:
        return 0
    return multiply_adds_of(node, out_block=block, in_block=block) - multiply_adds_of(node)
