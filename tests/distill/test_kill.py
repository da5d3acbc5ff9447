"""`kill -9` of a distillation, and what `--resume` makes of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from handheld.distill import distill


@pytest.mark.parametrize("cache", ["none", "features"])
def test_a_killed_run_resumes_to_the_bits_of_an_uninterrupted_one(
    toy, videos: Path, tmp_path: Path, one_thread: None, cache: str
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        toy.recipe_text(cache).replace("steps: 12", "steps: 60").replace("save_every: 4", "save_every: 7")
    )
    killed = tmp_path / "killed"
    # The first kill comes before any checkpoint; the second one anywhere between two.
    for lines, flags in ((1, []), (30, ["--resume"])):
        process = subprocess.Popen([sys.executable, toy.__file__, killed, videos, recipe, *flags])
        while process.poll() is None and _lines(killed / "metrics.jsonl") < lines:
            time.sleep(0.005)
        process.kill()
        assert process.wait() != 0, "the run ended before it was killed"
        assert not (killed / "run.json").exists()

    toys = {"teacher": toy.ToyTeacher(), "student": toy.ToyStudent(), "device": "cpu"}
    distill(recipe, killed, videos=[videos], resume=True, **toys)
    toys = {"teacher": toy.ToyTeacher(), "student": toy.ToyStudent(), "device": "cpu"}
    distill(recipe, tmp_path / "whole", videos=[videos], **toys)
    for name in (
        "student/diffusion_pytorch_model.safetensors",
        "checkpoint/state.safetensors",
        "held_out.safetensors",
    ):
        one, two = load_file(killed / name), load_file(tmp_path / "whole" / name)
        assert one.keys() == two.keys()
        assert [key for key in one if not torch.equal(one[key], two[key])] == []


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
