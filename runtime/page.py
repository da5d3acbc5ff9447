"""Pieces of the HTML pages: the frame around them, sections, tables, and how figures are written.

Pages are well-formed XML too. Style, charts and pictures are inside them; they load nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .charts import clean

NONE = "–"


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page; empty sections are left out."""
    css = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{clean(title)}</title><style>\n{css}</style></head>\n"
        f"<body><main>\n{chr(10).join(part for part in sections if part)}\n</main></body></html>\n"
    )


class Html(str):
    """Text that is markup already."""


def section(title: str, body: str) -> str:
    return f"<section><h2>{clean(title)}</h2>{body}</section>"


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1, text_last: bool = False
) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        out = []
        for index, cell in enumerate(cells):
            kind = ' class="text"' if index < text_columns else ""
            if text_last and index == len(cells) - 1:
                kind = ' class="text wide"'
            out.append(f"<{tag}{kind}>{cell if isinstance(cell, Html) else clean(cell)}</{tag}>")
        return "<tr>" + "".join(out) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{line("th", header)}</thead><tbody>{body}</tbody></table></div>'


def pairs(values: Mapping[str, Any]) -> str:
    return table(["", ""], [[name, value_text(value)] for name, value in values.items()], text_columns=2)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        out.update(flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return out


def value_text(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def psnr_text(psnr_db: float | None) -> str:
    if psnr_db is None:
        return NONE
    return "equal" if math.isinf(psnr_db) and psnr_db > 0 else f"{psnr_db:.1f}"


def ms(value_ns: int) -> str:
    return f"{value_ns / 1e6:,.4g}" if value_ns < 1e12 else f"{value_ns / 1e6:,.0f}"


def median_ms(values_ns: Sequence[int]) -> str:
    return ms(round(statistics.median(values_ns))) if values_ns else NONE


def mb(value_bytes: int | None) -> str:
    return NONE if value_bytes is None else f"{value_bytes / 1e6:,.1f}"
