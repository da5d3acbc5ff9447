"""handheld estimate"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from . import options
from .console import say, size, status, table
from .errors import CommandError

if TYPE_CHECKING:
    from handheld.convert.estimate import Calibration, DeviceTable, Estimate, Work
    from handheld.runtime.profile_record import Measurement, Profile

EPILOG = (
    "Example: [dim]handheld estimate ltx --device iphone-16-pro --height 512 --width 512 --frames 17[/dim]. Exits "
    "with status 1 if it does not fit."
)


def run(
    source: options.Source,
    device: Annotated[
        list[str],
        typer.Option(
            "--device",
            "-d",
            help="iphone-16-pro, iphone-16, iphone-15-pro, pixel-9, or a .json of yours; repeatable.",
        ),
    ],
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    precision: options.Precision = None,
    calibrate: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="A profile measured on such a device, to scale by; repeatable.", show_default=False),
    ] = None,
    config: options.Config = None,
    subfolder: options.Subfolder = None,
    causal: options.Causal = False,
    seed: options.Seed = 0,
) -> None:
    """Estimate latency and memory on a phone that is not here, before anything is exported.

    From the graph that the device's target lowers: multiply-adds, bytes moved, peak of activations; and from rates
    calibrated on published figures, whose error is shown. An estimate is no measurement: its band is wide, and it
    knows nothing of heat. A profile from a phone narrows it. docs/estimate.md has the model and its sources.
    """
    from handheld.convert import TARGETS
    from handheld.convert.estimate import estimate, read_device, work_of
    from handheld.sources import open_source

    devices = [read_device(name) for name in device]
    with status(f"Loading {source}"):
        opened = open_source(source, config=config, subfolder=subfolder, causal=causal, seed=seed)
    latents, _ = opened.example(frames, height, width)
    model, example = opened.model.to("meta"), latents.to("meta")
    found = []
    for one in devices:
        with status(f"Reading the graph for {one.title}"):
            work = work_of(model, example, TARGETS[one.target], precision)
        calibration = _calibrated(one, calibrate) if calibrate else None
        found.append(estimate(work, one, calibration))
    h, w = latents.shape[3:]
    clip = f"{found[0].work.frames} frames of {w * opened.spec.spatial}x{h * opened.spec.spatial}"
    table(
        f"ESTIMATE, not measured: {opened.name}, {clip}",
        ["device", "ms", "ms, band", "FPS", "FPS, band", "bound by", "memory", "fits"],
        [_row(verdict) for verdict in found],
    )
    for verdict in found:
        for line in _remarks(verdict):
            say(f"{verdict.device.name}: {line}")
    if any(verdict.fits == "no" for verdict in found):
        raise typer.Exit(1)


def _row(one: Estimate) -> list[str]:
    memory = [size(one.memory_bytes), one.fits or "unknown"]
    if one.seconds is None or one.low is None or one.high is None or one.computing is None:
        return [one.device.title, *["unknown"] * 5, *memory]
    frames, share = one.work.frames, max(one.computing, 1 - one.computing)
    return [
        one.device.title,
        f"{one.seconds * 1e3:.0f}",
        f"{one.low * 1e3:.0f} to {one.high * 1e3:.0f}",
        f"{frames / one.seconds:.1f}",
        f"{frames / one.high:.1f} to {frames / one.low:.1f}",
        f"{one.bound} ({share:.0%})",
        *memory,
    ]


def _remarks(one: Estimate) -> list[str]:
    lines = []
    if one.calibration is None:
        lines.append("no rates are known for it; measure one model on it and give the profile with --calibrate.")
    else:
        calibration = one.calibration
        lines.append(
            f"rates fitted to {calibration.source}. Each row predicted from the others is off "
            f"by {calibration.median_error:.0%} in the median; four in five in the band, ×/÷{calibration.band:.2f}."
        )
    limit, entitled = one.device.memory_limit_bytes, one.device.memory_limit_entitled_bytes
    if limit.value is None:
        lines.append(f"memory limit of an app: unknown ({limit.source}).")
    else:
        more = f", {entitled.value / 1e9:g} GB with Apple's increased-memory entitlement" if entitled.value else ""
        lines.append(f"an app may take {limit.value / 1e9:g} GB{more} ({limit.source}).")
    lines.append("memory is weights and activations of the graph; the runtime's own comes on top.")
    if one.load_seconds:
        lines.append(f"loading takes {one.load_seconds * 1e3:.0f} ms or more: weights over the storage's rate.")
    return lines


def _calibrated(device: DeviceTable, paths: Sequence[Path]) -> Calibration:
    """Rates of a device from profiles that were measured on it."""
    from handheld.convert import TARGETS
    from handheld.convert.estimate import recalibrated
    from handheld.runtime.profile_file import read_profile

    measured = []
    for path in paths:
        profile = read_profile(path)
        if profile.device.model not in device.models or profile.device.emulated:
            raise CommandError(
                f"{path} was measured on {profile.device.name}{' (emulated)' if profile.device.emulated else ''}; "
                f"{device.name} is {' or '.join(device.models)}. Calibrate each device on its own profiles."
            )
        runtime = TARGETS[device.target].runtime
        for subject in profile.subjects:
            if subject.runtime == runtime and subject.latency is not None:
                with status(f"Reading the graph of {subject.label}"):
                    measured.append((_work(path, profile, subject, device), subject.latency.median_ns / 1e9))
    return recalibrated(device, measured, ", ".join(path.name for path in paths))


def _work(path: Path, profile: Profile, subject: Measurement, device: DeviceTable) -> Work:
    import torch

    from handheld.convert import TARGETS
    from handheld.convert.estimate import work_of
    from handheld.sources import open_source

    origin = {} if subject.bundle is None else profile.bundles[subject.bundle].provenance
    named = next((str(origin[key]) for key in ("preset", "run", "checkpoint") if key in origin), None)
    if named is None or not subject.input_shapes:
        raise CommandError(
            f"{path}: {subject.label} does not say which model it is (a preset, a run or a checkpoint in its "
            "bundle's provenance) or on what shape it ran, so its work cannot be computed."
        )
    opened = open_source(named, causal=bool(origin.get("causal", False)))
    example = torch.empty(subject.input_shapes[0], device="meta")
    known = TARGETS[device.target].precisions
    precision = subject.precision if subject.precision in known else None
    return work_of(opened.model.to("meta"), example, TARGETS[device.target], precision)
