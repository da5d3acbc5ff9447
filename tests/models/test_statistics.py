"""Latents are converted as the phones' libraries convert them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from handheld.models import LatentStatistics

CONVERSIONS = json.loads(
    (Path(__file__).resolve().parents[1] / "fixtures" / "latents" / "conversions.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_latents_are_converted_to_the_numbers_that_the_phones_compute(name: str) -> None:
    case = CONVERSIONS[name]
    given = case["statistics"]
    statistics = LatentStatistics(tuple(given["mean"]), tuple(given["std"]), given["scaling"])
    values = torch.tensor(case["values"]).reshape(case["shape"])
    assert statistics.normalise(values).ravel().tolist() == case["normalise"]
    assert statistics.denormalise(values).ravel().tolist() == case["denormalise"]
