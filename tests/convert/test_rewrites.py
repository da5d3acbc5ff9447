"""Every rewrite on its own cases and near-misses: how often it applies, why it refuses, and the same function."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from handheld.convert.rewrite import Case, Rewrite, apply, capture
from handheld.convert.rewrites import REWRITES, conv3d_taps

# fp32 sums in another order; outputs are of order one.
EAGER_TOLERANCE = 1e-5


def run(rewrite: Rewrite, case: Case):
    torch.manual_seed(0)
    model = case.build().eval()
    x = torch.randn(case.shape)
    graph = capture(model, (x,))
    (report,) = apply(graph, (rewrite,))
    with torch.no_grad():
        return report, (graph(x) - model(x)).abs().max().item()


def named(attribute: str):
    pairs = [(rewrite, case) for rewrite in REWRITES for case in getattr(rewrite, attribute)]
    return pytest.mark.parametrize(
        ("rewrite", "case"), pairs, ids=[f"{rewrite.name}-{case.name}" for rewrite, case in pairs]
    )


@named("cases")
def test_rewrite_applies_and_keeps_the_function(rewrite: Rewrite, case: Case) -> None:
    report, difference = run(rewrite, case)
    assert report.applied == case.applied
    assert not report.refused
    assert difference < EAGER_TOLERANCE


@named("near_misses")
def test_near_miss_stays_untouched_for_the_stated_reason(rewrite: Rewrite, case: Case) -> None:
    report, difference = run(rewrite, case)
    assert report.applied == 0
    assert difference == 0
    assert bool(report.refused) == bool(case.refused)
    assert all(case.refused in refusal.reason for refusal in report.refused)


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda r: r.name)
def test_rewrite_has_cases_near_misses_a_reason_and_a_drawing(rewrite: Rewrite) -> None:
    assert rewrite.cases
    assert rewrite.near_misses
    assert len(rewrite.why) > 40


def test_the_harness_catches_a_rewrite_that_computes_something_else() -> None:
    def wrong(graph, match):
        node = conv3d_taps.REWRITE.replace(graph, match)
        return graph.call(torch.ops.aten.mul.Tensor, node, 1.001)

    _, difference = run(replace(conv3d_taps.REWRITE, replace=wrong), conv3d_taps.REWRITE.cases[0])
    assert difference > EAGER_TOLERANCE


def test_a_rewrite_that_changes_the_shape_is_named() -> None:
    def wrong(graph, match):
        return graph.call(torch.ops.aten.relu.default, match[0].args[0])

    with pytest.raises(AssertionError, match="conv3d_taps changed conv3d from"):
        run(replace(conv3d_taps.REWRITE, replace=wrong), conv3d_taps.REWRITE.cases[0])


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
