"""Choosing between equivalent lowerings: by modelled cost, weighed against weights, on the record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from handheld.convert import TARGETS, ExportError
from handheld.convert.choice.choose import Choice
from handheld.convert.choice.costs import (
    KINDS,
    CostTable,
    OpRates,
    features_of,
    kind_of,
    read_table,
    shipped_table,
)
from handheld.convert.choice.tune import SAMPLES, Sample, tune
from handheld.convert.graph.capture import capture
from handheld.convert.graph.memory import lifetimes, live_bytes
from handheld.convert.graph.nodes import is_call
from handheld.convert.graph.rewrite import Rewrite, apply
from handheld.convert.rewrites import (
    batch_in_time,
    cancel_layouts,
    conv3d_taps,
    merge_border_taps,
    temporal_winograd,
)
from handheld.convert.rewrites.cases import conv3d
from handheld.convert.rewrites.merge_border_taps import bordered

PLAIN = OpRates(call_ns=0.0, multiply_add_ns=1.0, element_ns=0.0, weight_ns=0.0)
WINOGRAD = temporal_winograd.REWRITES


def table(**rates: OpRates) -> CostTable:
    return CostTable("test", "made up", 1, {kind: rates.get(kind, PLAIN) for kind in KINDS})


def run(model: nn.Module, shape: tuple[int, ...], choice: Choice):
    torch.manual_seed(0)
    x = torch.randn(shape)
    graph = capture(model.eval(), (x,))
    records = {record.name: record for record in apply(graph, (choice,))}
    with torch.no_grad():
        assert (graph(x) - model(x)).abs().max() < 1e-4
    return graph, records


def chosen(records) -> list[str]:
    return [name for name, record in records.items() if record.applied]


def test_fewer_multiply_adds_win_where_only_they_cost() -> None:
    choice = Choice((*WINOGRAD, conv3d_taps.REWRITE), table, weight_price=0.0)
    _, records = run(bordered(1, 1, 16, 16, 3)(), (1, 16, 5, 24, 24), choice)
    assert chosen(records) == ["winograd_f5"]
    (selection,) = records["winograd_f5"].selected
    costs = {option.rewrite: option.relative_cost for option in selection.options}
    assert costs["conv3d_taps"] == 1.0
    # 7 products of a frame in place of 15, and what the transforms add.
    assert 7 / 15 < costs["winograd_f5"] < 0.6
    assert costs["winograd_f5"] == min(costs.values())


def test_a_table_where_transforms_are_dear_keeps_plain_taps() -> None:
    dear = table(matmul=replace(PLAIN, element_ns=1e6))
    _, records = run(
        bordered(1, 1, 8, 8, 3)(), (1, 8, 5, 8, 8), Choice((*WINOGRAD, conv3d_taps.REWRITE), lambda: dear)
    )
    assert chosen(records) == ["conv3d_taps"]


class TwoLayers(nn.Module):
    """One layer has most of the weights and little of the time: `heavy`."""

    def __init__(self) -> None:
        super().__init__()
        self.heavy, self.busy = nn.Conv3d(64, 64, 3, padding=(0, 1, 1)), nn.Conv3d(4, 4, 3, padding=(0, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        clip = x[:, :1, :, :2, :2].expand(1, 64, -1, -1, -1)
        return self.busy(x).mean() + self.heavy(clip).mean()


def selections(size: int, worth: float):
    """By module, what was chosen and what there was."""
    choice = Choice((*WINOGRAD, conv3d_taps.REWRITE), table, weight_price=worth)
    _, records = run(TwoLayers(), (1, 4, 5, size, size), choice)
    return {s.module: (name, s.options) for name, record in records.items() for s in record.selected}


def test_weights_are_paid_for_by_time() -> None:
    free, dear = selections(64, 0.0), selections(64, 2.0)
    assert free["heavy"][0].startswith("winograd")
    assert dear["heavy"][0] == "conv3d_taps"
    assert dear["busy"][0].startswith("winograd")
    assert not any(option.refused for _, options in dear.values() for option in options)


def test_a_layer_whose_weights_the_models_activations_do_not_make_room_for_stays_plain_and_says_so() -> None:
    found = selections(16, 0.0)
    assert found["busy"][0].startswith("winograd")
    assert found["heavy"][0] == "conv3d_taps"
    (missed,) = [option for option in found["heavy"][1] if option.refused]
    assert "memory: with each layer's best" in missed.refused
    assert missed.relative_cost < 1
    assert missed.weight_bytes > 64 * 64 * 27 * 4


def test_a_tensor_that_is_needed_later_counts_as_live_in_every_option() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(8, 8, 3, padding=(0, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.relu()
            return self.conv(x) + x[:, :, 1:-1]

    x = torch.randn(1, 8, 6, 16, 16)
    frame = x[:, :, 0].numel() * 4
    graph = capture(Residual(), (x,))
    (conv,) = [n for n in graph.graph.nodes if is_call(n, torch.ops.aten.conv3d.default)]
    live = live_bytes(graph, lifetimes(graph, inputs_stay=False))
    assert live[conv] == (6 + 4) * frame
    apply(graph, (conv3d_taps.REWRITE, batch_in_time.REWRITE, cancel_layouts.REWRITE))
    # The clip, the sum so far, a tap's frames and what its convolution gives.
    assert max(live_bytes(graph, lifetimes(graph, inputs_stay=False, free_layouts=True)).values()) == 18 * frame


def test_an_option_reads_through_the_copies_of_border_frames() -> None:
    choice = Choice((merge_border_taps.REWRITE, conv3d_taps.REWRITE), table, weight_price=0.0)
    _, records = run(bordered(2, 2, 6, 6, 5, groups=6)(), (1, 6, 3, 8, 8), choice)
    assert chosen(records) == ["merge_border_taps"]
    (selection,) = records["merge_border_taps"].selected
    merged = next(option for option in selection.options if option.rewrite == "merge_border_taps")
    assert merged.relative_cost == 9 / 15  # convolutions of a frame; the table has nothing for sums and copies


def test_a_refused_option_is_on_the_record_and_a_place_that_all_refuse_is_a_refusal() -> None:
    choice = Choice((*WINOGRAD, conv3d_taps.REWRITE), table)
    _, records = run(conv3d(4, 4, 3, groups=4)(), (1, 4, 5, 6, 6), choice)
    (selection,) = records["conv3d_taps"].selected
    assert [option.refused for option in selection.options] == ["4 groups: not dense"] * 4 + [None]
    graph, records = run(conv3d(4, 4, 3, padding=1)(), (1, 4, 5, 6, 6), choice)
    assert chosen(records) == []
    assert [refusal.reason for refusal in records["conv3d_taps"].refused] == [
        "zero padding of 1 in time; pad the input instead"
    ]
    assert any(is_call(node, torch.ops.aten.conv3d.default) for node in graph.graph.nodes)


def test_estimating_leaves_the_graph_and_its_weights_alone() -> None:
    seen = []

    def spy(graph, match):
        seen.append(graph.value(match[0].args[1]).device.type)
        return conv3d_taps.REWRITE.replace(graph, match)

    rewrite: Rewrite = replace(conv3d_taps.REWRITE, replace=spy)
    run(conv3d(4, 4, 3)(), (1, 4, 5, 6, 6), Choice((rewrite,), table))
    assert seen == ["meta", "cpu"]  # once without data, to be costed, and once for good


@pytest.mark.parametrize("name", ["onnxruntime", "xnnpack", "coreml"])
def test_shipped_tables_are_complete_and_say_where_they_come_from(name: str) -> None:
    found = shipped_table(name)
    assert set(found.rates) == set(KINDS)
    assert "measured" in found.source
    assert CostTable(**vars(found)) == read_again(found)


def read_again(found: CostTable) -> CostTable:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        path.write_text(found.to_json())
        return read_table(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tree: tree.update(format_version=2), "format_version 2"),
        (lambda tree: tree["rates"].pop("conv"), "rates has"),
        (lambda tree: tree["rates"]["conv"].update(call_ns=-1), r"rates\.conv\.call_ns"),
        (lambda tree: tree.update(colour="blue"), "colour: unknown key"),
    ],
)
def test_a_spoilt_table_is_refused_by_name(tmp_path: Path, spoil, message: str) -> None:
    tree = json.loads(table().to_json())
    spoil(tree)
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(ExportError, match=message):
        read_table(path)


def test_a_table_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text("{")
    with pytest.raises(ExportError, match="no readable cost table"):
        read_table(path)


def test_features_count_what_a_convolution_does() -> None:
    graph = capture(nn.Conv2d(6, 5, 3, padding=1), (torch.randn(2, 6, 4, 4),))
    (node,) = [n for n in graph.graph.nodes if kind_of(n) == "conv"]
    found = features_of(node)
    assert (found.multiply_adds, found.elements, found.weights) == (2 * 5 * 16 * 6 * 9, 2 * 16 * 11, 5 * 6 * 9 + 5)
    assert features_of(node, channel_block=16).multiply_adds == 2 * 16 * 16 * 6 * 9


def test_tuning_measures_every_kind_on_the_real_runtime() -> None:
    by_kind: dict[str, Sample] = {}
    for sample in SAMPLES:
        graph = capture(sample.build(), (torch.randn(sample.shape),))
        by_kind.setdefault([k for node in graph.graph.nodes if (k := kind_of(node))][-1], sample)
    assert set(by_kind) == set(KINDS)
    steps = []
    found, fits = tune(
        TARGETS["onnx"],
        source="a test",
        repeat=1,
        samples=list(by_kind.values()),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1] == (len(KINDS), len(KINDS))
    assert {fit.kind for fit in fits} == set(KINDS) == set(found.rates)
    assert (found.runtime, found.source) == ("onnxruntime", "a test")
    # One sample a kind is explained exactly by one rate, unless nothing was measurable.
    assert found.rates["conv"] != OpRates(0.0, 0.0, 0.0, 0.0)
