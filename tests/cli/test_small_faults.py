"""What commands must not do in silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from handheld.convert import TARGETS, ExportError
from handheld.convert.choice.costs import shipped_table
from handheld.convert.lowering import lower
from handheld.convert.quiet import quiet
from handheld.convert.target import choose_by
from handheld.profiling import run_pictures, run_quality

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("option", ["--height", "--width", "--frames"])
@pytest.mark.parametrize("size", [-64, 0])
def test_a_size_below_one_is_an_error_that_names_the_option(handheld: Run, option: str, size: int) -> None:
    status, _, text = handheld("check", "tiny", "-t", "onnx", option, size)
    assert status == 2
    assert f"'{option}'" in text
    assert "1" in text


def test_check_runs_the_graph_on_request_and_says_what_leaves_the_range_of_fp16(handheld: Run) -> None:
    size = ["--height", 16, "--width", 16, "--frames", 3]
    status, text, _ = handheld("check", "tiny", "-t", "ios", "-t", "onnx", *size, "--values")
    assert status == 0
    assert "ios, fp16: no result comes within" in text
    assert "onnx, fp32: not fp16" in text


def test_a_bundle_of_no_run_shows_no_picture_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frames.png").write_bytes(b"of something else")
    monkeypatch.chdir(tmp_path)
    bundle = SimpleNamespace(manifest=SimpleNamespace(provenance={"source": "preset"}))
    assert run_pictures(bundle) == []
    assert run_quality(bundle) == {}
    bundle.manifest.provenance = {"run": str(tmp_path)}
    assert [path for _, path in run_pictures(bundle)] == [tmp_path / "frames.png"]


def test_what_an_inner_quiet_block_collects_reaches_the_outer_one() -> None:
    with quiet() as outer:
        print("before")
        with quiet():
            print("ERROR: inside")
    assert outer.getvalue().splitlines() == ["before", "ERROR: inside"]


def test_what_a_compiler_wrote_is_in_the_message_of_a_target_that_is_quiet_itself() -> None:
    def refuses(job: object) -> None:
        with quiet():
            print("ERROR: op 17 is not supported")
            raise ValueError("compilation failed")

    with pytest.raises(ExportError, match=r"compilation failed\nERROR: op 17 is not supported"):
        lower(replace(TARGETS["onnx"], lower=refuses), None)


def test_a_cost_table_is_for_the_targets_that_choose_by_it_and_leaves_the_others() -> None:
    table = replace(shipped_table("onnxruntime"), source="measured here")
    onnx, ios = choose_by([TARGETS["onnx"], TARGETS["ios"]], table)
    assert "measured here" in {
        step.costs().source for step in onnx.precision("fp32").rewrites if hasattr(step, "costs")
    }
    assert ios is TARGETS["ios"]
    with pytest.raises(ExportError, match="none of ios makes a choice by such a table"):
        choose_by([TARGETS["ios"]], table)
