"""8-bit convolutions as quantise and dequantise ops around them, which onnxruntime fuses.

    before   x -> cat, slice, ... -> conv2d(W, b) -> pixel_shuffle, ... -> z
    after    q(x) -> cat, slice, ... (bytes) -> dq -> conv2d(dq(W8), b) -> q -> pixel_shuffle, ... (bytes) -> dq

Activations are uint8 with one scale and zero point a tensor, weights int8 with one scale an output channel and
no zero point: what the runtime's kernels for AVX512-VNNI and Arm take. Ops that only move data work on bytes, a
quarter of the memory traffic: the quantise op goes up through them, the dequantise op down.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..graph.nodes import argument
from ..graph.rewrite import Graph
from ..precision.layers import QuantizationPlan, convolutions, moved, roots

aten = torch.ops.aten

# What the quantise and dequantise ops take behind the tensor: scale, zero point, lowest, highest, dtype.
_Affine = tuple[float, int, int, int, torch.dtype]

_WEIGHT = (-127, 127, torch.int8)


def quantize(graph: fx.GraphModule, calibration: Sequence[Tensor]) -> tuple[fx.GraphModule, QuantizationPlan]:
    """A copy of a rewritten graph with convolutions in 8 bits, and which they are.

    Args:
        graph: fp32, its convolutions two-dimensional; left as it is.
        calibration: latents that the graph takes, at least one: the ranges of activations are taken from them.
    """
    result = copy.deepcopy(graph)
    plan = convolutions(result)
    inputs = {conv: roots(argument(conv, 0)) for conv in plan.quantized}
    ranges = _observe(result, [*inputs.values(), *((conv,) for conv in inputs)], calibration)
    editor = _Editor(result)
    # Backwards: an input may be put together from the output of a convolution that is not yet replaced.
    for conv in reversed(plan.quantized):
        editor.quantize(conv, ranges[inputs[conv]], ranges[(conv,)])
    result.graph.eliminate_dead_code()
    result.graph.lint()
    result.recompile()
    return result, plan


class _Observer(fx.Interpreter):
    """Runs a graph and shows tensors to observers as they are computed."""

    def __init__(self, module: fx.GraphModule, observers: dict[fx.Node, list[Any]]) -> None:
        super().__init__(module)
        self._observers = observers

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for observer in self._observers.get(n, ()):
            observer(value)
        return value


def _observe(
    graph: fx.GraphModule, groups: Sequence[tuple[fx.Node, ...]], calibration: Sequence[Tensor]
) -> dict[tuple[fx.Node, ...], _Affine]:
    """One range per group of tensors: of the least squared error over the calibration latents."""
    from torchao.quantization.pt2e import HistogramObserver

    histograms = {
        group: HistogramObserver(dtype=torch.uint8, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine)
        for group in groups
    }
    by_node = defaultdict(list)
    for group, histogram in histograms.items():
        for node in group:
            by_node[node].append(histogram)
    observer = _Observer(graph, by_node)
    with torch.no_grad():
        for latents in calibration:
            observer.run(latents)
    ranges = {}
    for group, histogram in histograms.items():
        scale, zero = histogram.calculate_qparams()
        ranges[group] = (scale.item(), int(zero.item()), 0, 255, torch.uint8)
    return ranges


class _Editor:
    """Puts 8-bit convolutions into a graph."""

    def __init__(self, module: fx.GraphModule) -> None:
        import torchao.quantization.pt2e  # noqa: F401  registers the ops

        self._ops = torch.ops.quantized_decomposed
        self._graph = Graph(module)
        self._bytes: dict[tuple[fx.Node, _Affine], fx.Node] = {}

    def quantize(self, conv: fx.Node, of_input: _Affine, of_output: _Affine) -> None:
        """Put one convolution in 8 bits, with everything before and behind it that only moves data."""
        x, weight, *rest = (argument(conv, i) for i in range(7))
        as_bytes = self._as_bytes(x, of_input)
        with self._graph.at(conv):
            dequantized = self._graph.call(self._ops.dequantize_per_tensor.default, as_bytes, *of_input)
            y = self._graph.call(aten.conv2d.default, dequantized, self._weight(weight), *rest)
            y = self._graph.call(self._ops.quantize_per_tensor.default, y, *of_output)
        self._hand_on(conv, y, of_output)

    def _weight(self, node: fx.Node) -> fx.Node:
        """The weight (O, I, kh, kw) in 8 bits."""
        weight = self._graph.value(node)
        scales = weight.abs().amax((1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny) / _WEIGHT[1]
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        quantized = self._ops.quantize_per_channel.default(weight, scales, zeros, 0, *_WEIGHT)
        constants = (self._graph.constant(value) for value in (quantized, scales, zeros))
        return self._graph.call(self._ops.dequantize_per_channel.default, *constants, 0, *_WEIGHT)

    def _as_bytes(self, node: fx.Node, affine: _Affine) -> fx.Node:
        """A tensor quantised: before it was moved, once for all who want it in this range."""
        key = (node, affine)
        if key not in self._bytes:
            if parts := {x: self._as_bytes(x, affine) for x in moved(node)}:
                with self._graph.at(node):
                    new = self._graph.call(node.target, *fx.map_arg(node.args, parts.__getitem__))
            else:
                with self._graph.at(node.next):
                    new = self._graph.call(self._ops.quantize_per_tensor.default, node, *affine)
            self._bytes[key] = new
        return self._bytes[key]

    def _hand_on(self, node: fx.Node, as_bytes: fx.Node, affine: _Affine) -> None:
        """Give the users of a tensor its bytes: moved by those that only move it, dequantised for the others."""
        users = list(node.users)
        movers = [user for user in users if moved(user) == [node]]
        for user in movers:
            with self._graph.at(user):
                new = self._graph.call(user.target, as_bytes, *user.args[1:])
            self._hand_on(user, new, affine)
        if others := set(users) - set(movers):
            with self._graph.at(as_bytes.next):
                new = self._graph.call(self._ops.dequantize_per_tensor.default, as_bytes, *affine)
            node.replace_all_uses_with(new, delete_user_cb=others.__contains__)
