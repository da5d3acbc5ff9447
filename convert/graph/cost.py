"""What a graph costs, counted from ops and shapes: multiply-adds, weight bytes and moved bytes. Runs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from .nodes import argument, constant_of, is_call, is_constant, shape_of
from .ops import ADDED_PRODUCTS, ATTENTIONS, CONVOLUTIONS, PRODUCTS, TRANSPOSED_CONVOLUTIONS, relabels


def multiply_adds(module: fx.GraphModule) -> int:
    """Multiply-adds of the convolutions and matrix products of a graph."""
    return sum(map(multiply_adds_of, module.graph.nodes))


def multiply_adds_of(node: fx.Node, out_block: int = 1, in_block: int = 1) -> int:
    """Multiply-adds of one node; 0 for what is no convolution and no matrix product.

    Args:
        out_block, in_block: a convolution's output and input channels, of each group, are rounded up to a multiple
            of these. A depthwise convolution's are not: it computes channels together as they are.
    """
    if is_call(node, *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS):
        return _of_convolution(node, out_block, in_block)
    if is_call(node, *PRODUCTS):
        return math.prod(shape_of(node)) * shape_of(node.args[0])[-1]
    if is_call(node, *ADDED_PRODUCTS):
        return math.prod(shape_of(node)) * shape_of(node.args[1])[-1]
    if is_call(node, *ATTENTIONS):
        query, key, value = (shape_of(operand) for operand in node.args[:3])
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0


@contextmanager
def counting_multiply_adds() -> Iterator[Callable[[], int]]:
    """Count the multiply-adds that torch computes inside the block, on any device; `multiply_adds` counts the same.

    Yields a function that gives the number so far.
    """
    with FlopCounterMode(display=False) as counter:
        yield lambda: counter.get_total_flops() // 2


def _of_convolution(node: fx.Node, out_block: int, in_block: int) -> int:
    weight = shape_of(node.args[1])
    groups = argument(node, 6)
    transposed = is_call(node, *TRANSPOSED_CONVOLUTIONS)
    # A convolution's weight is (out, in / groups, ...), a transposed one's (in, out / groups, ...).
    first, second, *kernel = weight
    # The taps of a kernel meet each place of the output, of a transposed convolution each place of the input.
    met = shape_of(node.args[0]) if transposed else shape_of(node)
    places = math.prod(met) // first
    own, other = first // groups, second
    if groups == 1 or other > 1:  # else depthwise
        own_block, other_block = (in_block, out_block) if transposed else (out_block, in_block)
        own, other = round_up(own, own_block), round_up(other, other_block)
    return places * groups * own * other * math.prod(kernel)


def weight_bytes(module: fx.GraphModule, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the parameters and constants that a graph reads, each once.

    Args:
        dtype: in which the artefact holds what the graph has in fp32.
    """
    held: dict[object, Tensor] = {}
    for node in module.graph.nodes:
        if is_constant(node) and node.users:
            tensor = constant_of(node)
            # Two names may have one tensor's memory. Tensors without data have a storage too, and no address.
            held[tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape] = tensor
    return sum(_bytes(tensor, dtype) for tensor in held.values())


def moved_bytes(module: fx.GraphModule, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of activations that the ops of a graph read and write, each operand once per op."""
    return sum(read + written for _, read, written in traffic(module, dtype))


def traffic(module: fx.GraphModule, dtype: torch.dtype = torch.float32) -> Iterator[tuple[fx.Node, int, int]]:
    """Each node that moves data, with the bytes of activations that it reads and writes, in the graph's order.

    What only relabels memory is left out: see `ops.relabels`.
    """
    for node in module.graph.nodes:
        if node.op == "call_function" and not relabels(node):
            yield node, sum(size_bytes(one, dtype) for one in activations_read(node)), size_bytes(node, dtype)


def activations_read(node: fx.Node) -> list[fx.Node]:
    """What a node reads that is no parameter or constant, each once."""
    return [one for one in node.all_input_nodes if not is_constant(one)]


def elements_of(node: fx.Node) -> int:
    """Elements of what a node yields."""
    return sum(tensor.numel() for tensor in _tensors(node))


def size_bytes(node: fx.Node, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of what a node yields, held in `dtype` where the graph has fp32."""
    return sum(_bytes(tensor, dtype) for tensor in _tensors(node))


def round_up(channels: int, block: int) -> int:
    """The smallest multiple of `block` that holds so many channels."""
    return -(-channels // block) * block


def _tensors(node: fx.Node) -> list[Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return [one for one in values if isinstance(one, Tensor)]


def _bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    return tensor.numel() * (dtype if tensor.dtype == torch.float32 else tensor.dtype).itemsize
