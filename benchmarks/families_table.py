"""The table of `benchmarks/families.json` in docs/families.md: this script writes it, tests compare the two.

python benchmarks/lowering.py --all --append --out benchmarks/families.json
python benchmarks/families_table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
FIGURES = REPO / "benchmarks/families.json"
PAGE = REPO / "docs/families.md"
BEGIN, END = "<!-- benchmarks/families_table.py writes this table -->\n", "<!-- end of the table -->\n"

_HEADS = (
    "preset",
    "3D convolutions",
    "speed",
    "difference",
    "Android: delegates",
    "ops outside",
    "peak, MB",
    "peak as is, MB",
    "rule",
)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, one row a model; `-` where a figure is not known."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|---" * len(_HEADS) + "|"]
    for result in results:
        rows = {row["variant"]: row for row in result["variants"]}
        ours, android = rows["onnx"], result["android"]
        outside = sum(android["ops_outside"].values()) if android else None
        cells = (
            f"`{result['preset']}`",
            {True: "yes", False: "no", None: "-"}[result["holds_3d_convolutions"]],
            _figure(ours["speedup"], ".2f"),
            _figure(ours["max_abs_error"], ".0e"),
            _figure(android and android["delegates"], "d"),
            _figure(outside, "d"),
            _figure(ours["peak_growth_bytes"], ".0f", 1e6),
            _figure(rows["as-is"]["peak_growth_bytes"], ".0f", 1e6),
            "; ".join(result["faults"]) or "holds",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figure(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else format(value / unit if unit != 1 else value, form)


def page(text: str, figures: dict[str, Any]) -> str:
    """The page, with the table of these figures in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table(figures['presets'])}\n{END}{after}"


if __name__ == "__main__":
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")
