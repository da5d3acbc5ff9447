"""Two charts as inline SVG: samples on a line, and bars. Colours come from the page's style sheet.

Both draw one row per item, from zero, so that lengths compare.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 760
_ROW = 44
_TOP = 8
_AXIS = 44
_LABEL_CHARACTERS = 26
_LEFT = 200
_RIGHT = 70


@dataclass(frozen=True)
class Row:
    """One row: its label, a class of the style sheet that colours it, and its values (one for a bar)."""

    label: str
    style: str
    values: tuple[float, ...]


def clean(text: str) -> str:
    """Text as markup: escaped, without the control characters that neither HTML nor XML may hold."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "�" for c in text))


def strip_plot(rows: Sequence[Row], unit: str) -> str:
    """Every value as a dot, over a box from the lower to the upper quartile with a line at the median."""
    scale, parts = _frame(rows, unit)
    for index, row in enumerate(rows):
        y = _TOP + index * _ROW + _ROW / 2
        low, middle, high = _quartiles(row.values)
        parts.append(
            f'<rect class="box {row.style}" x="{scale(low):.1f}" y="{y - 13:.1f}" rx="3"'
            f' width="{max(1.0, scale(high) - scale(low)):.1f}" height="26"/>'
        )
        for number, value in enumerate(row.values):
            # Spread by the golden ratio: even, and the same in every rendering.
            jitter = ((number * 0.618034) % 1 - 0.5) * 20
            parts.append(f'<circle class="dot {row.style}" cx="{scale(value):.1f}" cy="{y + jitter:.1f}" r="2.6"/>')
        x = scale(middle)
        parts.append(f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 16:.1f}" y2="{y + 16:.1f}"/>')
    return _svg(rows, parts, f"Every sample, in {unit}; box: quartiles, line: median")


def bar_chart(rows: Sequence[Row], unit: str) -> str:
    """One bar per row, with its value behind it."""
    scale, parts = _frame(rows, unit)
    for index, row in enumerate(rows):
        y = _TOP + index * _ROW + _ROW / 2
        (value,) = row.values
        parts.append(
            f'<rect class="bar {row.style}" x="{_LEFT}" y="{y - 10:.1f}" rx="3"'
            f' width="{max(1.0, scale(value) - _LEFT):.1f}" height="20"/>'
            f'<text class="value" x="{scale(value) + 6:.1f}" y="{y + 4:.1f}">{value:,.4g}</text>'
        )
    return _svg(rows, parts, f"In {unit}")


def _frame(rows: Sequence[Row], unit: str) -> tuple[Callable[[float], float], list[str]]:
    """The scale from values to x, and labels, grid and axis."""
    largest = max((value for row in rows for value in row.values), default=0.0) or 1.0
    step = _nice(largest / 5)
    end = math.ceil(largest / step) * step
    bottom = _TOP + len(rows) * _ROW

    def scale(value: float) -> float:
        return _LEFT + value / end * (_WIDTH - _LEFT - _RIGHT)

    parts = []
    for tick in range(round(end / step) + 1):
        x = scale(tick * step)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}">{tick * step:g}</text>')
    parts.append(f'<text class="tick" x="{scale(end / 2):.1f}" y="{bottom + 36}">{clean(unit)}</text>')
    for index, row in enumerate(rows):
        y = _TOP + index * _ROW + _ROW / 2 + 4
        short = row.label if len(row.label) <= _LABEL_CHARACTERS else row.label[: _LABEL_CHARACTERS - 1] + "…"
        parts.append(
            f'<text class="label" x="{_LEFT - 12}" y="{y}">{clean(short)}<title>{clean(row.label)}</title></text>'
        )
    return scale, parts


def _svg(rows: Sequence[Row], parts: Sequence[str], title: str) -> str:
    height = _TOP + len(rows) * _ROW + _AXIS
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img"><title>{clean(title)}</title>'
        + "".join(parts)
        + "</svg>"
    )


def _nice(step: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
