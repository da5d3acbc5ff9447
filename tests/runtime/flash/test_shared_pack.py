"""The pack that the Swift and Kotlin tests run too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from handheld.runtime.flash import ModelOptions, SessionOptions, open_pack

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "packs"


@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_the_shared_pack_gives_what_it_is_expected_to(mode: str) -> None:
    want = json.loads((FIXTURES / "expected.json").read_text())
    pack = open_pack(FIXTURES / "llama")
    pack.verify()
    model = pack.model(ModelOptions(SessionOptions(16 << 20), mode=mode))
    np.testing.assert_allclose(model.decode(want["prompt"])[:8], want["logits"], atol=2e-4)
    model.reset()
    assert list(model.generate(want["prompt"], len(want["tokens"]))) == want["tokens"]
