"""One HTML page of several profiles side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from . import files
from .charts import Row as ChartRow
from .charts import bar_chart, clean, strip_plot
from .comparison import Gate, Row, workload_of
from .page import NONE, mb, median_ms, ms, page, section, table
from .profile_record import THERMAL_ANDROID, THERMAL_IOS, Measurement, Profile

HEADER = (
    "profile",
    "model",
    "device",
    "runtime",
    "makes",
    "median, ms",
    "p90, ms",
    "per second",
    "time, × baseline",
    "load, ms",
    "peak, MB",
    "size, MB",
    "thermal",
    "parity",
)


def cells(row: Row) -> list[str]:
    """A row of the table, under HEADER."""
    s = row.subject
    summary, rate = s.latency, s.units_per_second
    return [
        row.name,
        s.label,
        device_text(row.profile),
        f"{s.runtime} {s.runtime_version or ''}".strip() + f" · {s.precision}",
        workload_of(s),
        ms(summary.median_ns) if summary else NONE,
        ms(summary.p90_ns) if summary else NONE,
        f"{rate:.3g}" if rate else NONE,
        f"{row.ratio.estimate:.3f} [{row.ratio.lower:.3f}, {row.ratio.upper:.3f}]" if row.ratio else NONE,
        median_ms(s.load_ns),
        mb(s.peak_growth_bytes if s.peak_growth_bytes is not None else s.peak_bytes),
        mb(s.size_bytes),
        hottest(s) or NONE,
        NONE if s.passes is None else "pass" if s.passes else "FAIL",
    ]


def device_text(profile: Profile) -> str:
    """`iPhone17,1, iOS 18.2`."""
    device = profile.device
    system = " ".join(part for part in (device.os, device.os_version) if part)
    text = f"{device.name}, {system}" if system else device.name
    return f"{text} (emulated)" if device.emulated else text


def hottest(subject: Measurement) -> str | None:
    """The worst thermal state that was seen, in the system's word."""
    seen = {state.thermal for one in subject.rounds for state in (one.before, one.after)}
    for words in (THERMAL_IOS, THERMAL_ANDROID):
        if seen & set(words) - {"critical"} or seen == {None, "critical"} or seen == {"critical"}:
            return max((word for word in words if word in seen), key=words.index)
    return None


def write_page(rows: Sequence[Row], gate: Gate | None, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all. Raises RuntimeFailure for a path that cannot be written."""
    title = "Comparison of profiles"
    scopes = dict.fromkeys(f"{row.name}: {row.profile.scope}" for row in rows)
    head = f'<header><h1>{title}</h1><p class="note">{"<br/>".join(clean(one) for one in scopes)}</p></header>'
    foot = (
        '<p class="foot">× baseline: quotient of the geometric means of the rounds\' medians, with one-sided 95 % '
        "bounds of Welch's t test over rounds. Peak: over the loaded runtime where that is known. Thermal: the "
        "worst state seen.</p>"
    )
    body = table(HEADER, [cells(row) for row in rows], text_columns=5) + foot
    sections = [head, _gate(gate), section("Models", body), *_plots(rows)]
    files.write_atomically(Path(path), page(title, sections).encode())


def _gate(gate: Gate | None) -> str:
    if gate is None:
        return ""
    lines = [f"<p><b>{clean(line)}</b></p>" for line in gate.slower] + [
        f"<p>{clean(line)}</p>" for line in gate.unjudged
    ]
    verdict = f"{gate.judged} judged, {len(gate.slower)} slower or failed"
    return section("Gate", f"<p>{verdict}</p>{''.join(lines)}")


def _plots(rows: Sequence[Row]) -> list[str]:
    """One pair of charts for each kind of work: only the same work shares an axis."""
    out = []
    for work in dict.fromkeys(workload_of(row.subject) for row in rows):
        group = [row for row in rows if workload_of(row.subject) == work and row.subject.samples_ns]
        strips = [
            ChartRow(_label(row), row.subject.role, tuple(ns / 1e6 for ns in row.subject.samples_ns))
            for row in group
        ]
        peaks = [
            ChartRow(_label(row), row.subject.role, (row.subject.peak_bytes / 1e6,))
            for row in group
            if row.subject.peak_bytes is not None
        ]
        charts = f"<h3>Every timed run</h3>{strip_plot(strips, 'ms')}" if strips else ""
        charts += f"<h3>Peak memory</h3>{bar_chart(peaks, 'MB')}" if peaks else ""
        out.append(section(work, charts) if charts else "")
    return out


def _label(row: Row) -> str:
    return f"{row.name}: {row.subject.label}"
