"""The legality report: what it finds, what it says repaired it, what is left, and what it costs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from handheld.convert import TARGETS, ExportError, check
from handheld.convert.graph.capture import capture
from handheld.convert.graph.cost import moved_bytes, multiply_adds, weight_bytes
from handheld.convert.graph.legality import Report
from handheld.convert.graph.memory import lifetimes, peak_memory
from handheld.convert.rewrites import channel_mean
from handheld.convert.rewrites.cases import Lambda
from handheld.convert.target import Target
from handheld.models import TurboVAEDecoder

ANDROID = TARGETS["android"]


def report(preset: str, target: Target, precision: str = "fp32", *, size: int = 32, causal: bool = False) -> Report:
    model = TurboVAEDecoder.from_preset(preset, causal=causal)
    shape = model.spec.latent_shape(frames=model.spec.frames(2), height=size, width=size)
    return check(model, torch.randn(shape), target, precision)


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_tiny_preset_is_legal_in_every_precision_of_every_target(target: str) -> None:
    for precision, wanted in TARGETS[target].precisions.items():
        found = report("tiny", TARGETS[target], precision)
        assert not found.illegal
        assert all(finding.repaired_by for finding in found.findings if finding.limit.blocks)
        assert found.findings
        weights = sum(p.numel() for p in TurboVAEDecoder.from_preset("tiny").parameters())
        assert found.captured.weight_bytes == weights * wanted.dtype.itemsize


@pytest.mark.parametrize(
    ("preset", "causal"),
    [
        ("ltx", True),
        pytest.param("hunyuan", False, marks=pytest.mark.slow),
        pytest.param("dc", False, marks=pytest.mark.slow),
    ],
)
def test_full_presets_are_legal_on_every_target(preset: str, causal: bool) -> None:
    # Targets that differ in neither are one. The rewrites for fp16 include those for fp32.
    for target in {(t.limits, t.precisions["fp16"].rewrites): t for t in TARGETS.values()}.values():
        found = report(preset, target, "fp16", causal=causal)
        assert not found.illegal
        assert all(finding.repaired_by for finding in found.findings if finding.limit.blocks)


def test_each_finding_names_its_module_its_reason_and_the_rewrite_that_repairs_it() -> None:
    found = report("tiny", ANDROID).findings
    first = next(finding for finding in found if finding.op == "conv3d")
    assert (first.module, first.shape, first.dtype) == ("conv_in.conv", (1, 64, 2, 4, 4), "float32")
    assert first.limit.severity == "refused"
    assert "0x12" in first.limit.reason
    by = {finding.op: finding.repaired_by for finding in found}
    assert by == {
        "conv3d": "conv3d_taps",
        "mean": "channel_mean",
        "pixel_shuffle": "pixel_shuffle_frames",
    }
    convolutions = [m for m in TurboVAEDecoder.from_preset("tiny").modules() if isinstance(m, nn.Conv3d)]
    assert sum(finding.op == "conv3d" for finding in found) == len(convolutions)


def test_a_rewrite_that_is_missing_leaves_its_ops_and_says_so() -> None:
    fp32 = ANDROID.precisions["fp32"]
    fewer = replace(fp32, rewrites=tuple(r for r in fp32.rewrites if r != channel_mean.REWRITE))
    found = report("tiny", replace(ANDROID, precisions={"fp32": fewer}))
    assert {finding.op for finding in found.illegal} == {"mean"}
    means = [finding for finding in found.findings if finding.op == "mean"]
    assert len(means) == len(found.illegal)
    # batch_in_time takes the means of clips, and what it puts in their place is not legal either: `left` has those.
    assert {finding.shape for finding in found.illegal} == {
        (2, 1, 4, 4),
        (3, 1, 8, 8),
        (3, 1, 16, 16),
        (3, 1, 32, 32),
    }


def test_an_op_that_no_rewrite_knows_is_left_with_nothing_to_repair_it() -> None:
    model = Lambda(lambda x: torch.cumsum(x, 3))
    found = check(model, torch.randn(1, 3, 2, 4, 4), ANDROID)
    (finding,) = found.illegal
    assert (finding.op, finding.limit.reason, finding.repaired_by) == ("cumsum", "no such op in XNNPACK", None)
    assert found.findings == found.left


def test_half_precision_has_findings_of_its_own_and_half_the_bytes() -> None:
    single, half = report("tiny", ANDROID), report("tiny", ANDROID, "fp16")
    assert {f.op for f in half.findings} - {f.op for f in single.findings} == {"add", "pow", "silu"}
    assert {f.repaired_by for f in half.findings if f.op in ("pow", "add")} == {"safe_rms_norm"}
    assert {f.dtype for f in half.findings} == {"float16"}
    assert 2 * half.captured.peak.size_bytes == single.captured.peak.size_bytes
    assert 2 * half.captured.activation_bytes == single.captured.activation_bytes


def test_a_target_without_limits_and_an_unknown_precision_are_refused() -> None:
    with pytest.raises(ExportError, match="android states no limits"):
        check(nn.Identity(), torch.ones(1), replace(ANDROID, limits=None))
    with pytest.raises(ExportError, match="no precision 'int3'"):
        check(nn.Identity(), torch.ones(1), ANDROID, "int3")


def test_the_report_survives_json() -> None:
    found = report("tiny", ANDROID)
    read = json.loads(json.dumps(found.to_json()))
    assert read["findings"][0]["limit"]["severity"] == found.findings[0].limit.severity
    assert read["rewritten"]["peak"]["size_bytes"] == found.rewritten.peak.size_bytes


# Memory. A float takes 4 bytes.


def graph(function, *shape: int):
    return capture(function if isinstance(function, nn.Module) else Lambda(function), (torch.randn(shape),))


def test_peak_is_where_two_branches_and_the_input_are_live() -> None:
    def forward(x: Tensor) -> Tensor:
        wide = torch.cat([x, x], 1)  # 200 floats
        return wide[:, :10].relu() + x  # slice, relu, sum of 100 each

    found = peak_memory(graph(forward, 10, 10))
    # The input, `wide`, and the slice of it.
    assert found.size_bytes == 4 * (100 + 200 + 100)
    assert found.op == "aten.slice.Tensor"


def test_reshapes_hold_the_memory_that_they_are_of() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x.relu()
        flat = y.reshape(-1)
        return flat.reshape(5, 20).sigmoid()

    tensors = lifetimes(graph(forward, 10, 10))
    assert [t.node.name for t in tensors] == ["x", "relu", "sigmoid"]
    relu, sigmoid = tensors[1:]
    assert relu.last == sigmoid.first
    assert peak_memory(graph(forward, 10, 10)).size_bytes == 4 * 300


def test_a_transpose_is_a_copy_unless_an_axis_of_one_moves() -> None:
    assert moved_bytes(graph(lambda x: x.transpose(0, 1), 10, 7)) == 4 * 140
    assert moved_bytes(graph(lambda x: x.transpose(0, 1), 10, 1)) == 0
    assert moved_bytes(graph(lambda x: x.permute(2, 0, 1), 3, 4, 1)) == 0


def test_parts_of_a_split_live_as_long_as_the_last_of_them() -> None:
    def forward(x: Tensor) -> Tensor:
        first, second = torch.split(x.relu(), 5, 0)
        return first.sigmoid() + second

    split = next(t for t in lifetimes(graph(forward, 10, 10)) if t.node.name.startswith("split"))
    assert split.size_bytes == 400
    last = max(t.first for t in lifetimes(graph(forward, 10, 10)))
    assert split.last == last


def test_weights_that_are_shared_count_once_and_in_the_artefacts_dtype() -> None:
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert weight_bytes(graph(tied, 2, 4)) == 64
    assert weight_bytes(graph(tied, 2, 4), torch.float16) == 32


def test_multiply_adds_count_convolutions_and_products() -> None:
    assert multiply_adds(graph(nn.Conv2d(3, 5, 3, padding=1), 1, 3, 4, 4)) == 5 * 16 * 27
    assert multiply_adds(graph(nn.Linear(7, 5), 3, 7)) == 3 * 5 * 7
    assert multiply_adds(graph(lambda x: x @ x.T, 3, 7)) == 3 * 3 * 7
