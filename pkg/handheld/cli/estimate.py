"""handheld estimate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from . import options
from .console import say, size, status, table

if TYPE_CHECKING:
    from handheld.convert.estimate import Estimate

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
    from handheld.estimating import estimate
    from handheld.sources import open_source

    with status(f"Loading {source}"):
        opened = open_source(source, config=config, subfolder=subfolder, causal=causal, seed=seed)
    with status("Reading graphs"):
        found = estimate(
            opened,
            device,
            frames=frames,
            height=height,
            width=width,
            precision=precision,
            calibrate=calibrate or (),
        )
    latents, _ = opened.example(frames, height, width)
    clip = opened.describe(latents)
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
