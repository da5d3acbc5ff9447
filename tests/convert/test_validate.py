"""A wrong rewrite is named, with node and module; rewrites can be left out; NaN is said before they are blamed."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.convert.conftest import small_decoder
from torch import fx, nn

from handheld.convert import TARGETS, ExportError, export
from handheld.convert.choice.choose import Choice, rewrites_of
from handheld.convert.graph import validate
from handheld.convert.graph.capture import capture
from handheld.convert.graph.nodes import module_of
from handheld.convert.graph.ranges import beyond_fp16
from handheld.convert.graph.rewrite import Graph, Rewrite, apply
from handheld.convert.rewrites import batch_in_time, cancel_layouts, conv3d_taps, merge_border_taps
from handheld.convert.rewrites.cases import of
from handheld.convert.target import Target, leave_out

LATENTS = (1, 48, 2, 4, 4)


# Each list of rewrites of any target and precision, once.
LISTS = {
    tuple(rewrite.name for rewrite in rewrites_of(precision.rewrites)): precision.rewrites
    for target in TARGETS.values()
    for precision in target.precisions.values()
}


def _wrong(original: Rewrite, spoil: Callable[[Graph, fx.Node], fx.Node]) -> Rewrite:
    """A rewrite whose result is spoilt for one module of the small decoder only."""

    def planted(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
        new = original.replace(graph, match)
        return spoil(graph, new) if module_of(match[0]) == "conv_in.conv" else new

    return replace(original, replace=planted)


def _one_percent_more(graph: Graph, new: fx.Node) -> fx.Node:
    return graph.call(torch.ops.aten.mul.Tensor, new, 1.01)


WRONG = _wrong(conv3d_taps.REWRITE, _one_percent_more)


def _planted(target: Target, wrong: Rewrite) -> Target:
    """A target with a wrong rewrite in the place of the right one of its name, in lists and choices."""

    def swap(step: object) -> object:
        if isinstance(step, Choice):
            return replace(step, options=tuple(swap(option) for option in step.options))
        return wrong if step.name == wrong.name else step

    precisions = {
        name: replace(p, rewrites=tuple(swap(step) for step in p.rewrites)) for name, p in target.precisions.items()
    }
    return replace(target, precisions=precisions)


def _export(tmp_path: Path, model: nn.Module, target: Target, **how: object) -> object:
    latents = torch.randn(LATENTS, generator=torch.Generator().manual_seed(0))
    return export(model, latents, tmp_path / "b", targets=[target], name="t", provenance={}, **how)


def _first_dense_conv(model: nn.Module) -> str:
    graph = capture(model, (torch.zeros(LATENTS),))
    return next(n for n in graph.graph.nodes if module_of(n) == "conv_in.conv" and "conv3d" in n.name).name


@pytest.mark.parametrize("most_bytes", [10**9, 0], ids=["values kept", "values drawn"])
def test_the_wrong_one_of_two_rewrites_is_named_with_its_node_and_module(most_bytes: int) -> None:
    model = small_decoder()
    x = torch.randn(LATENTS, generator=torch.Generator().manual_seed(0))
    graph = capture(model, (x,))
    watch = validate.Validator(graph, (x,), most_bytes)
    with pytest.raises(ExportError, match=r"rewrite conv3d_taps is wrong for conv3d\S* of conv_in\.conv"):
        apply(graph, (merge_border_taps.REWRITE, WRONG, batch_in_time.REWRITE), watch)


@pytest.mark.parametrize("most_bytes", [10**9, 0], ids=["values kept", "values drawn"])
@pytest.mark.parametrize("names", LISTS, ids=[f"{len(names)} rewrites" for names in LISTS])
def test_right_rewrites_pass_at_every_place(names: tuple[str, ...], most_bytes: int) -> None:
    x = torch.randn(LATENTS, generator=torch.Generator().manual_seed(0))
    graph = capture(small_decoder(), (x,))
    watch = validate.Validator(graph, (x,), most_bytes)
    records = apply(graph, LISTS[names], watch)
    assert watch.checked == sum(record.applied for record in records) > 0


def test_export_names_a_wrong_rewrite_with_validate_and_without(tmp_path: Path) -> None:
    wrong = _planted(TARGETS["onnx"], WRONG)
    # Only where it is chosen: the plainest option is, where no other is left.
    wrong = wrong.without([n for n in wrong.rewrite_names() if n.startswith(("winograd", "merge_border"))])
    for how in ({"validate": True}, {}):
        with pytest.raises(
            ExportError, match=r"rewrite conv3d_taps is wrong for conv3d\S* of conv_in\.conv: .*--without"
        ):
            _export(tmp_path, small_decoder(), wrong, **how)


def test_a_rewrite_is_left_out_of_lists_and_choices_and_the_manifest_says_so(tmp_path: Path) -> None:
    left_out = ("winograd_f2", "winograd_f3", "winograd_f4", "winograd_f5", "keep_epsilon")
    bundle = _export(tmp_path, small_decoder(), TARGETS["onnx"], without=left_out)
    (artifact,) = bundle.artifacts
    assert artifact.settings["without"] == sorted(left_out)
    assert not {record.name for record in artifact.rewrites} & set(left_out)
    assert "conv3d_taps" in {record.name for record in artifact.rewrites}


def test_a_choice_goes_with_its_last_option() -> None:
    target = TARGETS["onnx"]
    names = {r.name for step in target.precision("fp32").rewrites if isinstance(step, Choice) for r in step.options}
    left = target.without(names).precision("fp32").rewrites
    assert not any(isinstance(step, Choice) for step in left)
    assert not names & {r.name for r in rewrites_of(left)}
    assert cancel_layouts.REWRITE in left


def test_an_unknown_rewrite_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(ExportError, match=r"No rewrite conv3d_tabs to leave out; onnx has .*conv3d_taps"):
        leave_out([TARGETS["onnx"]], ["conv3d_tabs"])


def test_weights_of_nan_are_named_before_rewrites_are_blamed(tmp_path: Path) -> None:
    model = small_decoder()
    with torch.no_grad():
        model.conv_in.conv.weight[0, 0] = float("nan")
    with pytest.raises(ExportError, match=r"The weights conv_in\.conv\.weight hold NaN"):
        _export(tmp_path, model, TARGETS["onnx"])


def test_values_beyond_fp16_are_named_where_they_are_made() -> None:
    x = torch.full((1, 2, 3, 3), 300.0)
    graph = capture(of(lambda x: (x.relu() * x.sigmoid()).pow(2).flatten(1).sqrt() * 120)(), (x,))
    found = beyond_fp16(graph, [(x,)])
    assert [(one.op, one.value) for one in found] == [("pow", pytest.approx(90000)), ("mul", pytest.approx(36000))]
    assert "infinite in fp16" in str(found[0])
    assert "infinite" not in str(found[1])


def test_an_export_in_half_precision_records_what_leaves_the_range(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(48, 8, 1), nn.Sigmoid(), nn.Conv3d(8, 3, 1))
    clean = _export(tmp_path, model, TARGETS["onnx"], precision="fp16").artifacts[0]
    assert clean.settings["beyond_fp16"] == []
    with torch.no_grad():
        model[0].weight *= 1e6
    (loud,) = (
        _export(tmp_path / "loud", model, TARGETS["onnx"], precision="fp16").artifacts[0].settings["beyond_fp16"]
    )
    assert loud["module"] == "0"
    assert loud["value"] > 65504


def test_a_flipped_kernel_is_named_too() -> None:
    def flipped(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
        other = copy(graph)
        other.value = lambda node: graph.value(node).flip(2)
        return conv3d_taps.REWRITE.replace(other, match)

    x = torch.randn(1, 4, 5, 6, 6)
    model = nn.Sequential(nn.SiLU(), nn.Conv3d(4, 4, 3, padding=(0, 1, 1)))
    graph = capture(model, (x,))
    with pytest.raises(ExportError, match="of 1:"):
        apply(graph, (replace(conv3d_taps.REWRITE, replace=flipped),), validate.Validator(graph, (x,)))
