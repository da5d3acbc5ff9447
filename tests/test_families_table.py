"""The table of docs/families.md is the one of benchmarks/families.json."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/families_table.py"


def test_the_page_has_the_table_of_the_measured_figures() -> None:
    spec = importlib.util.spec_from_file_location("families_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    figures = json.loads(script.FIGURES.read_text(encoding="utf-8"))
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text, figures) == text, "run python benchmarks/families_table.py"
    assert all(f"`{result['preset']}`" in text for result in figures["presets"])
