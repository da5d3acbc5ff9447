"""The tokenizers that the Swift and Kotlin tests read give in the reference what `expected.json` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parent / "fixtures" / "tokenizers"


def test_expected_ids_are_those_of_the_reference() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    for name, cases in json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8")).items():
        tokenizer = tokenizers.Tokenizer.from_file(str(FIXTURES / name / "tokenizer.json"))
        tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text
        for text, ids in cases:
            assert tokenizer.encode(text).ids == ids, text
