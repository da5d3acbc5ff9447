"""The tokenizers that the Swift and Kotlin tests read give in the reference what `expected.json` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "tokenizer"


def test_expected_ids_are_those_of_the_reference() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    cases = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
    for case in cases:
        tokenizer = tokenizers.Tokenizer.from_file(str(FIXTURES / case["tokenizer"]))
        ids = tokenizer.encode(case["text"], add_special_tokens=False).ids
        assert (ids, tokenizer.decode(ids)) == (case["ids"], case["decoded"]), case["text"]
