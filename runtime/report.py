"""One self-contained HTML page of a profile: tables, charts, pictures, and where it all came from.

The page is well-formed XML too. Style, charts and pictures are inside it; it loads nothing.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import files
from .charts import Row, bar_chart, clean, strip_plot
from .errors import RuntimeFailure
from .page import NONE, Html, flat, mb, median_ms, ms, page, pairs, psnr_text, section, table, value_text
from .profile_record import Conditions, Measurement, Profile
from .verify import Verdict

Quality = Mapping[str, Mapping[str, float | str | None]]


def write_report(
    profile: Profile,
    path: str | os.PathLike[str],
    *,
    title: str,
    images: Sequence[tuple[str, str | os.PathLike[str]]] = (),
    verdicts: Sequence[Verdict] | None = None,
    quality: Quality | None = None,
) -> None:
    """Write the page, whole or not at all.

    Args:
        images: (caption, PNG file) pairs, shown in this order and copied into the page.
        verdicts: what `verify` found.
        quality: a table: row (such as "student, held out") to column (such as "PSNR, dB") to value.

    Raises RuntimeFailure for an image that cannot be read and a path that cannot be written.
    """
    sections = [
        _head(profile, title),
        _tiles(profile),
        _pictures(images),
        _quality(quality or {}),
        _speed(profile),
        _footprint(profile),
        _verdicts(verdicts or ()),
        _method(profile),
        _origin(profile),
    ]
    files.write_atomically(Path(path), page(title, sections).encode())


def _head(profile: Profile, title: str) -> str:
    device = profile.device
    in_turn = "Ratios were measured side by side, run by run." if profile.settings.interleaved else ""
    cores = f", {device.cores_available or device.cores} cores" if device.cores else ""
    return (
        f'<header><h1>{clean(title)}</h1><p class="dim">{clean(profile.created_utc)} · '
        f"{clean(device.name)}{cores} · {clean(_system(profile))}</p>"
        f'<p class="note">{clean(profile.scope[0].upper() + profile.scope[1:])}. '
        f"{in_turn}</p></header>"
    )


def _system(profile: Profile) -> str:
    device = profile.device
    parts = [part for part in (device.os, device.os_version, device.architecture) if part]
    return " ".join(parts) or "unknown system"


def _tiles(profile: Profile) -> str:
    """The figures of the fastest student."""
    students = [(s.latency.median_ns, s) for s in profile.subjects if s.role == "student" and s.latency]
    if not students:
        return ""
    median_ns, best = min(students, key=lambda pair: pair[0])
    growth = best.peak_growth_bytes
    tiles = [
        (f"{best.units_per_second:.3g}", f"{best.unit}s per second"),
        (ms(median_ns) + " ms", f"for {best.units_per_run} {best.unit}s, median"),
        (mb(best.size_bytes) + " MB", "artefact size"),
        (mb(growth) + " MB" if growth is not None else NONE, "peak memory over the loaded runtime"),
    ]
    if speedup := profile.speedup(best):
        tiles.insert(0, (f"{speedup.median_of_pairs:.2f} ×", f"as fast as {speedup.reference}"))
    cells = "".join(
        f'<div class="tile"><b>{clean(value)}</b><span>{clean(what)}</span></div>' for value, what in tiles
    )
    return f'<p class="dim">Fastest student here: {clean(best.label)}</p><div class="tiles">{cells}</div>'


def _pictures(images: Sequence[tuple[str, str | os.PathLike[str]]]) -> str:
    figures = [
        f'<figure><img alt="{clean(caption)}" src="data:image/png;base64,{_png(path)}"/>'
        f"<figcaption>{clean(caption)}</figcaption></figure>"
        for caption, path in images
    ]
    return section("Frames", "".join(figures)) if figures else ""


def _png(path: str | os.PathLike[str]) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RuntimeFailure(f"{path} cannot be read for the report: {error.strerror}.") from error
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise RuntimeFailure(f"{path} is not a PNG file; the report takes PNG pictures.")
    return base64.b64encode(data).decode()


def _quality(quality: Quality) -> str:
    columns = list(dict.fromkeys(column for row in quality.values() for column in row))
    if not columns:
        return ""
    rows = [[name, *(value_text(row.get(column)) for column in columns)] for name, row in quality.items()]
    return section("Quality", table(["", *columns], rows))


def _speed(profile: Profile) -> str:
    header = ["", "runtime", "load, ms", "first run, ms", "first frame, ms", "median, ms", "p90, ms", "p99, ms"]
    header += ["FPS", "× teacher"]
    rows, failed = [], []
    for s in profile.subjects:
        summary, rate, speedup = s.latency, s.units_per_second, profile.speedup(s)
        times = [ms(getattr(summary, f"{p}_ns")) if summary else NONE for p in ("median", "p90", "p99")]
        rows.append(
            [
                Html(f'{clean(s.label)} <span class="badge {s.role}">{s.role}</span>'),
                _runtime(s),
                median_ms(s.load_ns),
                median_ms(s.first_run_ns),
                ms(s.first_frame.median_ns) if s.first_frame else NONE,
                *times,
                f"{rate:.3g}" if rate else NONE,
                f"{speedup.median_of_pairs:.2f}" if speedup else NONE,
            ]
        )
        if s.error:
            failed.append(f"<p><b>{clean(s.label)}</b> was not measured in full:</p><pre>{clean(s.error)}</pre>")
    strips = [
        Row(s.label, s.role, tuple(sample / 1e6 for sample in s.samples_ns)) for s in profile.subjects if s.latency
    ]
    plot = f"<h3>Every timed run</h3>{strip_plot(strips, 'ms')}" if strips else ""
    foot = (
        '<p class="foot">× teacher: how many times as fast as the first teacher, the median over pairs of runs '
        "taken in turn. Load: artefact to ready session, file cache warm, runtime already imported. "
        "Load and first run: median of the rounds. First frame: median over the timed runs, of streamed artefacts; "
        "others give all frames at the end of a run.</p>"
    )
    return section("Speed", table(header, rows, text_columns=2) + "".join(failed) + plot + foot)


def _runtime(measured: Measurement) -> str:
    parts = [f"{measured.runtime} {measured.runtime_version or ''}".strip(), measured.precision]
    if measured.threads:
        parts.append(f"{measured.threads} thread{'s' if measured.threads > 1 else ''}")
    return " · ".join(parts)


def _footprint(profile: Profile) -> str:
    sizes = [Row(s.label, s.role, (s.size_bytes / 1e6,)) for s in profile.subjects]
    grown = [(s, s.peak_growth_bytes) for s in profile.subjects]
    memory = [Row(s.label, s.role, (growth / 1e6,)) for s, growth in grown if growth is not None]
    rows = [
        [
            s.label,
            mb(s.size_bytes),
            mb(growth),
            mb(s.peak_bytes),
            mb(s.baseline_bytes),
        ]
        for s, growth in grown
    ]
    header = ["", "size, MB", "peak over loaded runtime, MB", "peak of the process, MB", "before loading, MB"]
    charts = f"<h3>Artefact size</h3>{bar_chart(sizes, 'MB')}"
    if memory:
        charts = f"<h3>Peak memory over the loaded runtime</h3>{bar_chart(memory, 'MB')}" + charts
    foot = (
        '<p class="foot">A process holds the runtime and the golden inputs before it loads a model; compare the '
        "growth over that. A streamed artefact's frames are thrown away as they come. 1 MB is 1,000,000 bytes.</p>"
    )
    return section("Memory and size", table(header, rows) + charts + foot)


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = [
        [
            v.artifact.name,
            Html(f'<span class="badge {v.status.replace(" ", "-")}">{v.status}</span>'),
            f"{v.artifact.runtime} {v.runtime_version or ''}".strip(),
            f"{v.max_abs_error:.2e}" if v.max_abs_error is not None else NONE,
            str(v.tolerance),
            psnr_text(v.psnr_db),
            v.reason or v.tolerance.reason,
        ]
        for v in verdicts
    ]
    header = ["artefact", "verdict", "runtime", "max abs error", "tolerance", "PSNR, dB", "why"]
    if not rows:
        return ""
    return section("Agreement with the eager model", table(header, rows, text_columns=3, text_last=True))


def _method(profile: Profile) -> str:
    s = profile.settings
    threads = f"{s.threads} threads" if s.threads else "each runtime's own choice of threads"
    in_turn = (
        " Each artefact ran in a fresh process per round, all of them alive together and asked for one run at a "
        "time in turn."
        if s.interleaved
        else ""
    )
    cooldown = f" {s.cooldown_ns / 1e9:g} s of rest before each round but the first." if s.cooldown_ns else ""
    said = (
        f"<p>{s.rounds} rounds of {s.repeat} timed runs per artefact, after one first run and {s.warmup} warm-up "
        f"runs; {threads}.{in_turn}{cooldown}</p>"
    )
    device = profile.device
    first = next((one.before for s in profile.subjects for one in s.rounds), None)
    last = next((s.rounds[-1].after for s in reversed(profile.subjects) if s.rounds), None)
    machine = {
        "device": device.model,
        "chip": device.soc,
        "architecture": device.architecture,
        "cores": device.cores,
        "cores, allowed": device.cores_available,
        "memory": f"{device.ram_bytes / 1e9:.1f} GB" if device.ram_bytes else None,
        "memory that the app may take, MB": mb(device.memory_limit_bytes),
        "system": _system(profile),
        **profile.software,
        "thermal state before and after": _before_after(first, last, "thermal"),
        "low-power mode before and after": _before_after(first, last, "low_power_mode"),
        "charging before and after": _before_after(first, last, "charging"),
        "load average before and after": _before_after(first, last, "load_average_1min"),
    }
    command = f"<h3>Command</h3><pre>{clean(profile.command)}</pre>" if profile.command else ""
    return section("How it was measured", said + pairs(machine) + command)


def _before_after(before: Conditions | None, after: Conditions | None, name: str) -> str | None:
    values = [getattr(one, name) if one else None for one in (before, after)]
    return None if values == [None, None] else ", ".join(value_text(value) for value in values)


def _origin(profile: Profile) -> str:
    parts = [
        f"<details><summary>{clean(bundle.name)} ({clean(bundle.created_utc)})</summary>"
        f"<h3>Provenance</h3>{pairs(flat(bundle.provenance))}<h3>Versions</h3>{pairs(bundle.versions)}</details>"
        for bundle in profile.bundles
    ]
    hashes = table(
        ["artefact", "SHA-256"],
        [[f"{s.label} ({s.artifact})" if s.artifact else s.label, s.sha256] for s in profile.subjects],
        text_columns=2,
    )
    return section("Where the models came from", "".join(parts) + hashes)
