"""What applying a rewrite does to a graph; that each computes the same is in test_parity.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from handheld.convert.graph.capture import capture
from handheld.convert.graph.nodes import is_constant
from handheld.convert.graph.rewrite import Rewrite, apply
from handheld.convert.rewrites import REWRITES, conv3d_taps


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda r: r.name)
def test_rewrite_has_cases_near_misses_a_reason_and_a_drawing(rewrite: Rewrite) -> None:
    assert rewrite.cases
    assert rewrite.near_misses
    assert len(rewrite.why) > 40


def test_a_rewrite_that_changes_the_shape_is_named() -> None:
    def wrong(graph, match):
        return graph.call(torch.ops.aten.relu.default, match[0].args[0])

    graph = capture(torch.nn.Conv3d(4, 6, 3), (torch.randn(1, 4, 5, 6, 6),))
    with pytest.raises(AssertionError, match="conv3d_taps changed conv3d from"):
        apply(graph, (replace(conv3d_taps.REWRITE, replace=wrong),))


def test_replaced_weights_do_not_stay_in_the_graph() -> None:
    model = torch.nn.Conv3d(4, 6, 3, padding=(0, 1, 1))
    graph = capture(model, (torch.randn(1, 4, 5, 6, 6),))
    apply(graph, (conv3d_taps.REWRITE,))
    held = sum(t.numel() for t in [*graph.parameters(), *graph.buffers()])
    assert held == sum(p.numel() for p in model.parameters())


def test_new_nodes_name_the_module_that_they_come_from() -> None:
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv3d(4, 6, 3, padding=(0, 1, 1)))
    graph = capture(model, (torch.randn(1, 4, 5, 6, 6),))
    apply(graph, (conv3d_taps.REWRITE,))
    convs = [n for n in graph.graph.nodes if n.target == torch.ops.aten.conv2d.default]
    assert {list(n.meta["nn_module_stack"].values())[-1][0] for n in convs} == {"1"}


class _Reordered(torch.nn.Linear):
    """A linear layer whose weight is reordered and whose input meets a constant that is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.reshape(2, 3, -1).transpose(0, 1).reshape(6, -1)
        return torch.nn.functional.linear(x, weight, self.bias) * self.bias.expand(5, 6)


def test_what_a_model_makes_of_its_weights_alone_is_a_constant_of_the_graph() -> None:
    model, x = _Reordered(4, 6), torch.randn(5, 4)
    graph = capture(model, (x,))
    assert torch.equal(graph(x), model(x))
    linear = next(n for n in graph.graph.nodes if n.target == torch.ops.aten.linear.default)
    assert is_constant(linear.args[1])
    # An expanded bias has more values than the bias: the artefact would grow.
    assert any(n.target == torch.ops.aten.expand.default for n in graph.graph.nodes)
