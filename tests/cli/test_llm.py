"""handheld llm as users meet it: from a checkpoint to text, figures and plans; one clear message per mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from handheld.runtime.errors import RuntimeMissing
from handheld.runtime.flash.engine import load_native

COMMANDS = ("pack", "generate", "profile", "quality", "calibrate", "replay")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def llm(handheld: Run) -> Run:
    """Runs `handheld llm` in this process: (exit status, stdout, stderr)."""
    return partial(handheld, "llm")


@pytest.fixture(scope="module")
def engine() -> None:
    try:
        load_native()
    except RuntimeMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8"))
    return path


def test_the_whole_way_from_a_checkpoint_to_text_and_a_plan(
    llm: Run, small_language_model: Callable[..., Path], text_file: Path, tmp_path: Path, engine: None
) -> None:
    checkpoint, pack = small_language_model("llama"), tmp_path / "model.flash"
    status, out, _ = llm(
        "pack", checkpoint, "-o", pack, "--selector", "ternary", "--calibrate", text_file, "--active", 0.4
    )
    assert status == 0
    assert "3 layers of 160 neurons" in out

    status, out, err = llm("generate", pack, "--prompt", "video", "--max-tokens", 12, "--memory", "40MB")
    assert status == 0
    assert out.strip()
    assert "selected mode" in err
    held, unit = re.search(r"([\d.]+) (MB) held", err).groups()  # type: ignore[union-attr]
    assert unit == "MB"
    assert 0 < float(held) < 40

    trace, figures = tmp_path / "trace.safetensors", tmp_path / "profile.json"
    status, out, _ = llm("profile", pack, "--tokens", 8, "--out", figures, "--trace", trace, "--miss-weight", 0.3)
    assert status == 0
    assert "says nothing about a phone" in out
    assert len(json.loads(figures.read_text())["token_ns"]) == 8

    status, out, _ = llm(
        "replay", trace, "--device", "m1-max", "--memory", "40MB", "--policy", "lru", "--policy", "hot"
    )
    assert status == 0
    assert "Estimated for Apple M1 Max" in out
    assert "nothing was measured on that device" in out
    assert re.search(r"40MB +hot ", out)

    status, out, _ = llm(
        "quality", pack, text_file, "--tokens", 128, "--piece", 64, "-o", tmp_path / "quality.json"
    )
    assert status == 0
    modes = json.loads((tmp_path / "quality.json").read_text())["modes"]
    assert [row["mode"] for row in modes] == ["dense", "exact", "selected"]
    assert modes[1]["agreement"] == 1


def test_calibrate_writes_a_device_that_replay_takes(llm: Run, tmp_path: Path) -> None:
    # Beside the tests, as the system's temporary folder may be in memory, which has no direct reads.
    folder = Path(__file__).parent
    status, out, err = llm(
        "calibrate", "-o", tmp_path / "here.json", "--folder", folder, "--file-size", "2MB", "--seconds", 0.01
    )
    if status and "past the page cache" in err:
        pytest.skip(err)
    assert status == 0
    assert "1024 KiB" in out
    status, _, err = llm("replay", tmp_path / "none", "--device", tmp_path / "here.json", "--memory", "1MB")
    assert status == 1
    assert "is not a trace" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(llm: Run, command: str) -> None:
    status, out, _ = llm(command, "--help")
    assert status == 0
    assert "Example" in out


def test_mistakes_get_one_clear_message_and_leave_nothing(
    llm: Run, small_language_model: Callable[..., Path], tmp_path: Path, engine: None
) -> None:
    checkpoint, pack = small_language_model("llama"), tmp_path / "model.flash"
    for arguments, message in (
        (("pack", tmp_path / "none", "-o", pack), "does not exist"),
        (("pack", checkpoint, "-o", pack, "--dtype", "int3"), "dtype is int3, allowed are fp32"),
        (("pack", checkpoint, "-o", pack, "--selector", "ternary"), "need a calibration text"),
        (("pack", checkpoint, "-o", pack, "--calibrate", tmp_path / "none.txt"), "none.txt"),
        (("generate", pack, "--prompt", "a"), "model.flash"),
    ):
        status, out, err = llm(*arguments)
        assert status == 1
        assert message in err
        assert err.count("handheld:") == 1
        assert not out
        assert not pack.exists()
    assert llm("pack", checkpoint, "-o", pack)[0] == 0
    for arguments, message in (
        (("pack", checkpoint, "-o", pack), "exists"),
        (("generate", pack, "--prompt", "a", "--memory", "lots"), "lots is not a size"),
        (("generate", pack, "--prompt", "a", "--memory", "1KB"), "budget"),
        (("generate", pack, "--prompt", "a", "--mode", "fast"), "no mode fast: use dense, exact or selected"),
        (("generate", pack, "--prompt", "a", "--mode", "selected"), "has no selector"),
        (("generate", pack, "--prompt", "a", "--chat"), "was not taught to chat"),
    ):
        status, _, err = llm(*arguments)
        assert status == 1
        assert message in err
