"""handheld profile"""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .console import note, say, size, status, table
from .errors import CommandError
from .progress import bar

if TYPE_CHECKING:
    from handheld.runtime.bundle import Bundle
    from handheld.runtime.profile_record import Profile


class Device(StrEnum):
    """Phones to measure on."""

    android = "android"
    ios = "ios"


EPILOG = (
    "Example: [dim]handheld profile bundle --out report[/dim]  (writes report/profile.json and report/index.html)"
)


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.", show_default=False)],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="Folder for profile.json and index.html.", show_default="BUNDLE-profile"),
    ] = None,
    teacher: Annotated[
        bool, typer.Option(help="Measure the run's teacher beside the student, as onnxruntime runs it.")
    ] = True,
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs of each artefact a round.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each in new processes.")] = 3,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed runs before them.")] = 2,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="CPU threads of each runtime.", show_default="2; on a phone its runtime's choice"),
    ] = None,
    device: Annotated[
        Optional[Device],  # noqa: UP045
        typer.Option("--device", "-d", help="Measure on a phone instead.", show_default="this machine"),
    ] = None,
    serial: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Which phone: of `adb devices`, or a name or identifier of devicectl.", show_default=False
        ),
    ] = None,
    runner: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="android: the program built from runtime/runner for the phone.", show_default=False),
    ] = None,
    cooldown: Annotated[float, typer.Option(min=0, help="android: seconds of rest between rounds.")] = 5.0,
    folder: Annotated[str, typer.Option(help="android: where on the phone.")] = "/data/local/tmp",
    shared: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--import", help="ios: the profile that the app shared; needs no Mac.", show_default=False),
    ] = None,
) -> None:
    """Measure every artefact that runs on this machine, side by side with the teacher; or on a phone.

    Load time, first run, steady latency (median, p90, p99), frames per second and peak memory, each artefact in
    a fresh process, runs interleaved so that ratios hold on a noisy machine. These are figures of this host: they
    say nothing about a phone. Core AI's interpreter for Linux is not timed.

    With --device android, bundle and runner go to a phone over adb, and what was measured comes back; the phone is
    left as it was. With --device ios, the app measures: over devicectl on a Mac, elsewhere by --import.
    """
    from handheld.runtime.bundle import read_bundle

    opened = read_bundle(bundle)
    target = out or Path(f"{bundle}-profile")
    if device is None:
        profile_and_show(opened, target, teacher, repeat, rounds, warmup, threads or 2)
        return
    if device is Device.android:
        if runner is None:
            raise CommandError(
                "--device android needs --runner: build runtime/runner for the phone (docs/profile.md)."
            )
        measured = _on_android(opened, runner, serial, repeat, warmup, rounds, threads, cooldown, folder)
    else:
        measured = _on_ios(opened, serial, shared)
    _write(opened, measured, target)
    if any(subject.error for subject in measured.subjects):
        raise typer.Exit(1)


def _on_android(
    bundle: Bundle,
    runner: Path,
    serial: str | None,
    repeat: int,
    warmup: int,
    rounds: int,
    threads: int | None,
    cooldown: float,
    folder: str,
) -> Profile:
    from handheld.runtime.devices.android import profile_android

    with bar("measuring") as update:
        return profile_android(
            bundle,
            runner,
            serial=serial,
            repeat=repeat,
            warmup=warmup,
            rounds=rounds,
            threads=threads,
            cooldown_seconds=cooldown,
            folder=folder,
            on_progress=update,
        )


def _on_ios(bundle: Bundle, serial: str | None, shared: Path | None) -> Profile:
    from handheld.runtime.devices.ios import import_profile, profile_ios

    if shared is not None:
        return import_profile(shared, bundle)
    name = bundle.path.resolve().name
    ready = partial(note, f"On the phone: open {name} and tap Decode and measure. Waiting for what it measures.")
    return profile_ios(bundle, device=serial, on_ready=ready)


def _write(bundle: Bundle, measured: Profile, out: Path) -> None:
    """Show what a phone measured; write JSON and page."""
    from handheld.runtime.profile_file import write_profile
    from handheld.runtime.report import write_report

    out.mkdir(parents=True, exist_ok=True)
    _show(measured)
    for subject in measured.subjects:
        if subject.error:
            say(f"{subject.label} failed: {subject.error}")
        verdict = {True: "agrees", False: "DOES NOT AGREE", None: "was not compared"}[subject.passes]
        say(f"{subject.label} {verdict} with the golden tensors.")
    write_profile(measured, out / "profile.json")
    write_report(measured, out / "index.html", title=bundle.manifest.name)
    say(f"{measured.scope[0].upper()}{measured.scope[1:]}.\nPage: {out / 'index.html'}")


def profile_and_show(
    bundle: Bundle, out: Path, teacher: bool, repeat: int, rounds: int, warmup: int, threads: int
) -> Profile:
    """Measure a bundle, print the table, write JSON and page."""
    from handheld.profiling import profile, run_pictures, run_quality, unmeasured
    from handheld.runtime.profile_file import write_profile
    from handheld.runtime.report import write_report
    from handheld.verifying import verify

    out.mkdir(parents=True, exist_ok=True)
    with bar("measuring") as update:
        result = profile(
            bundle,
            teacher=teacher,
            repeat=repeat,
            rounds=rounds,
            warmup=warmup,
            threads=threads,
            progress=note,
            on_progress=update,
        )
    with status("Verifying"):
        verdicts = verify(bundle)
    _show(result)
    for name, why in unmeasured(bundle).items():
        say(f"{name} was not measured: {why}.")
    write_profile(result, out / "profile.json")
    write_report(
        result,
        out / "index.html",
        title=bundle.manifest.name,
        images=run_pictures(bundle),
        verdicts=verdicts,
        quality=run_quality(bundle),
    )
    say(f"{result.scope[0].upper()}{result.scope[1:]}.\nPage: {out / 'index.html'}")
    return result


def _show(result: Profile) -> None:

    def ms(ns: float) -> str:
        return f"{ns / 1e6:.1f}"

    rows = []
    for m in result.subjects:
        if m.latency is None:
            rows.append([m.label, f"failed: {m.error}", *["–"] * 9])
            continue
        growth, speedup = m.peak_growth_bytes, result.speedup(m)
        rows.append(
            [
                m.label,
                *(ms(sorted(ns)[len(ns) // 2]) if ns else "–" for ns in (m.load_ns, m.first_run_ns)),
                ms(m.first_frame.median_ns) if m.first_frame else "–",
                ms(m.latency.median_ns),
                ms(m.latency.p90_ns),
                ms(m.latency.p99_ns),
                f"{m.units_per_second:.1f}",
                "–" if growth is None else size(growth),
                size(m.size_bytes),
                f"{speedup.median_of_pairs:.2f}x" if speedup else "–",
            ]
        )
    threads = f"{result.settings.threads} threads" if result.settings.threads else "its own choice of threads"
    table(
        f"{result.device.name}, {threads} (ms; memory over the loaded runtime)",
        ["", "load", "first run", "first frame", "median", "p90", "p99", "FPS", "peak memory", "file", "speed"],
        rows,
    )
