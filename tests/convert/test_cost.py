"""Counting what a graph costs, against torch's own counter and by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from handheld.convert.graph.capture import capture
from handheld.convert.graph.cost import (
    counting_multiply_adds,
    moved_bytes,
    multiply_adds,
    multiply_adds_of,
    traffic,
    weight_bytes,
)
from handheld.convert.graph.nodes import is_call
from handheld.convert.graph.ops import (
    BINARY,
    CONVOLUTIONS,
    JOINS,
    MOVES,
    PARTS,
    PERMUTATIONS,
    PRODUCTS,
    REDUCTIONS,
    RESHAPES,
    TRANSPOSED_CONVOLUTIONS,
    UNARY,
)


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def graph(function: Callable[..., Tensor] | nn.Module, *shapes: tuple[int, ...]) -> fx.GraphModule:
    module = function if isinstance(function, nn.Module) else Function(function)
    return capture(module, tuple(torch.randn(shape) for shape in shapes))


COUNTED = {
    "conv1d": (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "conv2d of groups": (nn.Conv2d(8, 12, (3, 2), stride=2, padding=1, groups=4), (2, 8, 9, 7)),
    "conv2d, padding same": (nn.Conv2d(4, 6, 3, padding="same"), (1, 4, 8, 8)),
    "conv3d": (nn.Conv3d(4, 6, 3, padding=1, dilation=1), (1, 4, 3, 5, 5)),
    "depthwise": (nn.Conv2d(8, 8, 5, groups=8), (1, 8, 9, 9)),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, 4, stride=2), (1, 4, 5, 5)),
    "transposed 3d of groups": (nn.ConvTranspose3d(4, 6, 2, stride=2, groups=2), (1, 4, 3, 3, 3)),
    "linear": (nn.Linear(5, 7), (2, 3, 5)),
    "matmul": (lambda x, y: x @ y, (2, 3, 5), (5, 7)),
    "bmm": (torch.bmm, (2, 3, 5), (2, 5, 7)),
    "addmm": (torch.addmm, (3, 7), (3, 5), (5, 7)),
    "baddbmm": (torch.baddbmm, (2, 3, 7), (2, 3, 5), (2, 5, 7)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_multiply_adds_of_a_graph_are_those_that_torch_counts_as_it_computes(name: str) -> None:
    function, *shapes = COUNTED[name]
    module = function if isinstance(function, nn.Module) else Function(function)
    with torch.no_grad(), counting_multiply_adds() as counted:
        module(*(torch.randn(shape) for shape in shapes))
    assert multiply_adds(graph(module, *shapes)) == counted() > 0


def test_attention_is_two_products() -> None:
    module = graph(F.scaled_dot_product_attention, (2, 4, 6, 8), (2, 4, 10, 8), (2, 4, 10, 12))
    assert multiply_adds(module) == 2 * 4 * 6 * 10 * (8 + 12)


def test_channels_are_rounded_up_but_for_depthwise_convolutions() -> None:
    def of(module: nn.Module, shape: tuple[int, ...], **blocks: int) -> int:
        (node,) = (
            n for n in graph(module, shape).graph.nodes if is_call(n, *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)
        )
        return multiply_adds_of(node, **blocks)

    dense = (nn.Conv2d(3, 5, 1), (1, 3, 2, 2))
    assert of(*dense) == 4 * 3 * 5
    assert of(*dense, out_block=4) == 4 * 3 * 8
    assert of(*dense, out_block=4, in_block=4) == 4 * 4 * 8
    assert of(nn.ConvTranspose2d(3, 5, 1), (1, 3, 2, 2), out_block=4) == 4 * 3 * 8
    assert of(nn.Conv2d(6, 10, 1, groups=2), (1, 6, 2, 2), out_block=4) == 4 * 2 * 3 * 8
    assert of(nn.Conv2d(6, 6, 3, groups=6), (1, 6, 3, 3), out_block=4, in_block=4) == 6 * 9


def test_what_relabels_memory_moves_nothing_and_reads_no_weights() -> None:
    def layer(x: Tensor) -> Tensor:
        return x.reshape(4, 6).unsqueeze(0).transpose(0, 1).flatten().relu()

    module = graph(layer, (2, 12))
    assert [(node.name, read, written) for node, read, written in traffic(module)] == [("relu", 96, 96)]
    assert moved_bytes(module, torch.float16) == 96
    assert moved_bytes(graph(nn.Conv2d(4, 4, 1), (1, 4, 2, 2))) == 2 * 64


def test_a_weight_counts_once_under_two_names_and_not_at_all_where_nothing_reads_it() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.unused = nn.Parameter(torch.zeros(100))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    assert weight_bytes(graph(Tied(), (2, 4))) == 64
    with torch.device("meta"):
        assert weight_bytes(capture(Tied(), (torch.empty(2, 4),))) == 64
    assert weight_bytes(graph(Tied(), (2, 4)), torch.float16) == 32


def test_groups_of_ops_that_exclude_one_another_share_none() -> None:
    groups = (RESHAPES, PERMUTATIONS, PARTS, JOINS, UNARY, BINARY, REDUCTIONS, CONVOLUTIONS, PRODUCTS)
    listed = [op for group in groups for op in group]
    assert len(listed) == len(set(listed))
    assert not set(MOVES) & {*UNARY, *BINARY, *REDUCTIONS}


@pytest.mark.parametrize("op", [op for op in UNARY if op is not torch.ops.aten.pow.Tensor_Scalar], ids=str)
def test_a_unary_op_takes_each_value_by_itself(op: torch._ops.OpOverload) -> None:
    x = torch.linspace(0.1, 0.9, 12)
    rest = {"clamp": (0.3, 0.6), "clamp_min": (0.3,), "clamp_max": (0.6,)}.get(op.overloadpacket.__name__, ())
    whole = op(x, *rest)
    assert torch.equal(whole.flip(0), op(x.flip(0), *rest))
    assert torch.equal(whole.reshape(3, 4), op(x.reshape(3, 4), *rest))
    assert torch.equal(whole[:5], op(x[:5], *rest))
