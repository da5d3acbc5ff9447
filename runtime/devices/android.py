"""Measuring ExecuTorch artefacts on an Android phone, with a runner that is pushed to it (`runtime/runner`).

Everything lies in one folder on the device, of a random name, which is removed at the end whatever happens. Each
round is a new process on the device. The runner writes raw facts; outputs are compared with the golden tensors
here.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .. import files, parsing
from ..bundle import Bundle
from ..errors import RuntimeFailure
from ..manifest import Artifact
from ..parity import compare
from ..profile import bundle_info
from ..profile_record import (
    THERMAL_ANDROID,
    ComputeUnits,
    Conditions,
    Device,
    Limits,
    Measurement,
    Parity,
    Profile,
    Round,
    Settings,
)
from .adb import Adb, Reply

FOLDER = "/data/local/tmp"
RUNTIME = "executorch"
_RUNNER_VERSION = 1

# Beside model, inputs and runner, the outputs come to lie on the device.
_SPARE_BYTES = 1 << 20

Progress = Callable[[int, int, str], None]

_MAYBE = parsing.nullable(parsing.integer(1, most=2**63 - 1))
_FACTS = parsing.record(
    dict,
    {
        "runner_version": parsing.integer(1),
        "runtime_version": parsing.nullable(parsing.text()),
        "threads": _MAYBE,
        "load_ns": _MAYBE,
        "first_run_ns": _MAYBE,
        "latency_ns": parsing.sequence(parsing.integer(1, most=2**63 - 1), least=1),
        "baseline_bytes": _MAYBE,
        "peak_bytes": _MAYBE,
    },
)


def profile_android(
    bundle: Bundle,
    runner: Path,
    *,
    artifacts: Sequence[Artifact] | None = None,
    serial: str | None = None,
    repeat: int = 20,
    warmup: int = 2,
    rounds: int = 3,
    threads: int | None = None,
    cooldown_seconds: float = 5.0,
    folder: str = FOLDER,
    on_progress: Progress | None = None,
) -> Profile:
    """Measure a bundle's ExecuTorch artefacts on a phone over adb.

    An artefact that the phone refuses or kills keeps what was measured of it, and its error; the others go on.

    Args:
        runner: the program of `runtime/runner`, built for the phone.
        artifacts: of the bundle; None is every one of the runtime `executorch`.
        serial: of the phone; None is the only one.
        repeat, warmup, rounds, threads: see `Settings`.
        cooldown_seconds: idle time before each round but the first, for the phone to cool.
        folder: on the phone, where files may be executed.

    Raises RuntimeMissing without adb; BundleError for an altered artefact, before anything is copied;
    RuntimeFailure for a missing runner, no artefact to run, a streamed one, no device, several or one that cannot
    be used, and one without space.
    """
    chosen = [a for a in bundle.artifacts if a.runtime == RUNTIME] if artifacts is None else list(artifacts)
    if not chosen or any(a.runtime != RUNTIME for a in chosen):
        there = ", ".join(f"{a.name} ({a.runtime})" for a in bundle.artifacts)
        raise RuntimeFailure(
            f"{bundle.path} has {there}; the runner takes artefacts of the runtime {RUNTIME}: export with "
            "--target android."
        )
    if streamed := ", ".join(a.name for a in chosen if a.stream is not None):
        raise RuntimeFailure(
            f"{streamed} of {bundle.path} is streamed, and the runner decodes whole clips: export without "
            "--stream, or leave --device out and measure on this machine."
        )
    if not runner.is_file():
        raise RuntimeFailure(f"{runner} is no file: give the runner, built from runtime/runner for the phone.")
    if min(repeat, rounds) < 1 or warmup < 0 or cooldown_seconds < 0 or (threads is not None and threads < 1):
        raise RuntimeFailure("repeat, rounds and threads are at least 1, warmup and cooldown at least 0.")
    for artifact in chosen:
        bundle.check(artifact)
    settings = Settings(repeat, warmup, rounds, threads, round(cooldown_seconds * 1e9), interleaved=False)
    adb = Adb.find(serial)
    device = describe_device(adb)
    measured = []
    with _folder(adb, folder) as place:
        _check_space(adb, place, [runner, *(bundle.locate(a.path) for a in chosen)], bundle)
        adb.push(runner, f"{place}/runner")
        _must(adb.shell(["chmod", "755", f"{place}/runner"]), adb, "making the runner executable")
        for index, artifact in enumerate(chosen):
            if on_progress:
                on_progress(index, len(chosen), artifact.name)
            measured.append(_measure(adb, place, bundle, artifact, settings))
        if on_progress:
            on_progress(len(chosen), len(chosen), chosen[-1].name)
    return Profile(
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]) or None,
        software={"handheld": version("handheld"), "runner": str(_RUNNER_VERSION)},
        settings=settings,
        device=device,
        bundles=(bundle_info(bundle),),
        subjects=tuple(measured),
    )


def describe_device(adb: Adb) -> Device:
    """What the phone says of itself; None where it does not."""

    def prop(*names: str) -> str | None:
        return next((value for name in names if (value := _said(adb, "getprop", name))), None)

    cores = _said(adb, "nproc")
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _said(adb, "cat", "/proc/meminfo") or "", re.MULTILINE)
    qemu = prop("ro.boot.qemu", "ro.kernel.qemu")
    return Device(
        platform="android",
        model=prop("ro.product.model"),
        soc=prop("ro.soc.model", "ro.board.platform"),
        architecture=prop("ro.product.cpu.abi") or _said(adb, "uname", "-m"),
        os="Android",
        os_version=prop("ro.build.version.release"),
        cores=int(cores) if cores and cores.isdigit() and int(cores) else None,
        cores_available=None,
        ram_bytes=int(memory[1]) * 1024 if memory else None,
        memory_limit_bytes=None,
        memory_metric="rss",
        emulated={"1": True, "0": False}.get(qemu or ""),
    )


def conditions(adb: Adb) -> Conditions:
    """State of the phone now; None where it does not say."""
    status = re.search(r"^Thermal Status: (\d+)", _said(adb, "dumpsys", "thermalservice") or "", re.MULTILINE)
    place = int(status[1]) if status else len(THERMAL_ANDROID)
    battery = _said(adb, "dumpsys", "battery") or ""
    level = re.search(r"^\s*level: (\d+)", battery, re.MULTILINE)
    powered = re.findall(r"^\s*\w+ powered: (true|false)", battery, re.MULTILINE)
    saver = _said(adb, "settings", "get", "global", "low_power")
    load = re.match(r"[\d.]+", _said(adb, "cat", "/proc/loadavg") or "")
    return Conditions(
        thermal=THERMAL_ANDROID[place] if place < len(THERMAL_ANDROID) else None,
        low_power_mode={"0": False, "1": True}.get(saver or ""),
        charging="true" in powered if powered else None,
        battery_percent=min(100, int(level[1])) if level else None,
        load_average_1min=float(load[0]) if load else None,
    )


def _measure(adb: Adb, place: str, bundle: Bundle, artifact: Artifact, settings: Settings) -> Measurement:
    rounds: list[Round] = []
    facts: Mapping[str, Any] = {}
    parity, error = None, None
    method = artifact.methods[0]
    try:
        with _copied(adb, place, bundle, artifact) as inputs:
            for index in range(settings.rounds):
                if index:
                    time.sleep(settings.cooldown_ns / 1e9)
                last = index == settings.rounds - 1
                before = conditions(adb)
                facts = _run_round(adb, place, method.name, settings, inputs, outputs=last)
                rounds.append(
                    Round(
                        load_ns=facts["load_ns"],
                        first_run_ns=facts["first_run_ns"],
                        latency_ns=tuple(facts["latency_ns"]),
                        first_frame_ns=(),
                        baseline_bytes=facts["baseline_bytes"],
                        peak_bytes=facts["peak_bytes"],
                        flash=None,
                        before=before,
                        after=conditions(adb),
                    )
                )
            parity = _parity(adb, place, bundle)
    except _Failed as failure:
        error = str(failure)
    return Measurement(
        label=artifact.name,
        role="student",
        bundle=0,
        artifact=artifact.name,
        target=artifact.target,
        runtime=artifact.runtime,
        runtime_version=facts.get("runtime_version"),
        precision=artifact.precision,
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        method=method.name,
        input_shapes=method.inputs,
        output_shapes=method.outputs,
        unit="frame",
        units_per_run=bundle.manifest.outputs[0].frames(method.outputs[0]),
        prompt_tokens=None,
        threads=facts.get("threads"),
        compute_units=ComputeUnits(asked="xnnpack"),
        tolerance=Limits(artifact.tolerance.max_abs, artifact.tolerance.min_psnr_db),
        rounds=tuple(rounds),
        parity=parity,
        error=error,
    )


class _Failed(Exception):
    """The runner failed on one artefact; the others may still run."""


def _run_round(
    adb: Adb, place: str, method: str, settings: Settings, inputs: Sequence[str], outputs: bool
) -> Mapping[str, Any]:
    counts = [str(count) for count in (settings.repeat, settings.warmup, settings.threads or 0)]
    facts = f"{place}/facts.json"
    _must(adb.shell(["rm", "-f", facts]), adb, "removing what the last round wrote")
    prefix = f"{place}/output." if outputs else "-"
    command = [f"{place}/runner", f"{place}/model", method, *counts, facts, prefix, *inputs]
    reply = adb.shell(command, timeout=None)
    if reply.status:
        raise _Failed(_death(reply))
    with tempfile.TemporaryDirectory(prefix="handheld-") as scratch:
        adb.pull(facts, Path(scratch) / "facts.json")
        text = (Path(scratch) / "facts.json").read_text(encoding="utf-8", errors="replace")
    faults: list[str] = []
    try:
        tree = _FACTS(parsing.load_json(text), "", faults)
    except ValueError as error:
        faults.append(str(error))
    if faults or tree["runner_version"] != _RUNNER_VERSION:
        raise RuntimeFailure(
            f"The runner wrote what this handheld does not understand ({'; '.join(faults) or 'another version'}). "
            "Build it from this version's runtime/runner."
        )
    return tree


def _death(reply: Reply) -> str:
    """Why the runner ended, from its exit status as a shell gives it."""
    said = reply.err.strip() or reply.out.strip()
    if reply.status <= 128:
        return said or f"The runner exited with {reply.status}."
    number = reply.status - 128
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if name == "SIGKILL":
        return "The phone killed the runner (SIGKILL): most likely out of memory. Try a smaller clip or streaming."
    return f"The runner died of {name}." + (f" It wrote: {said}" if said else "")


@contextmanager
def _copied(adb: Adb, place: str, bundle: Bundle, artifact: Artifact) -> Iterator[list[str]]:
    """The model and its golden inputs on the phone; what was there of another model is removed afterwards."""
    golden, _ = bundle.golden()
    inputs = [f"{place}/input.{spec.name}" for spec in bundle.manifest.inputs]
    try:
        adb.push(bundle.locate(artifact.path), f"{place}/model")
        with tempfile.TemporaryDirectory(prefix="handheld-") as scratch:
            for spec, target in zip(bundle.manifest.inputs, inputs):
                source = Path(scratch) / spec.name
                source.write_bytes(np.ascontiguousarray(golden[spec.name], dtype="<f4").tobytes())
                adb.push(source, target)
        yield inputs
    finally:
        outputs = [f"{place}/output.{index}" for index in range(len(bundle.manifest.outputs))]
        adb.shell(["rm", "-f", f"{place}/model", *inputs, *outputs])


def _parity(adb: Adb, place: str, bundle: Bundle) -> tuple[Parity, ...]:
    _, golden = bundle.golden()
    found = []
    with tempfile.TemporaryDirectory(prefix="handheld-") as scratch:
        for index, spec in enumerate(bundle.manifest.outputs):
            local = Path(scratch) / str(index)
            adb.pull(f"{place}/output.{index}", local)
            values = np.fromfile(local, dtype="u1" if spec.pixels else "<f4")
            if values.size != golden[spec.name].size:
                raise _Failed(
                    f"{spec.name} came as {values.size} values, the manifest says {golden[spec.name].size}."
                )
            found.append(compare(spec, None, values.reshape(golden[spec.name].shape), golden[spec.name]))
    return tuple(found)


@contextmanager
def _folder(adb: Adb, parent: str) -> Iterator[str]:
    place = f"{parent}/handheld-{secrets.token_hex(4)}"
    _must(adb.shell(["mkdir", place]), adb, f"making {place}")
    try:
        yield place
    finally:
        adb.shell(["rm", "-rf", place])


def _check_space(adb: Adb, place: str, copied: Sequence[Path], bundle: Bundle) -> None:
    """Before minutes of copying. A phone whose `df` says nothing is asked by copying."""
    golden = bundle.manifest.golden.size_bytes  # inputs and outputs
    wanted = sum(map(files.size_of, copied)) + golden + _SPARE_BYTES
    lines = (_said(adb, "df", "-k", place) or "").splitlines()
    columns = lines[-1].split() if len(lines) > 1 else []
    if len(columns) >= 4 and columns[3].isdigit() and int(columns[3]) * 1024 < wanted:
        raise RuntimeFailure(
            f"{adb.serial} is out of space: {int(columns[3]) * 1024 / 1e6:.0f} MB are free at {place}, "
            f"{wanted / 1e6:.0f} MB are needed. Free some and try again."
        )


def _said(adb: Adb, *command: str) -> str | None:
    """What a command prints; None where it fails, is not there or prints nothing."""
    reply = adb.shell(command)
    return reply.out.strip() or None if reply.status == 0 else None


def _must(reply: Reply, adb: Adb, what: str) -> None:
    if reply.status:
        raise RuntimeFailure(f"{adb.serial}: {what} failed: {(reply.err + reply.out).strip()}")
