"""`handheld.estimate`: what a phone would take for a decoder, before anything is exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handheld.convert import TARGETS
from handheld.convert.errors import ExportError
from handheld.convert.estimate import (
    Calibration,
    DeviceTable,
    Estimate,
    Work,
    estimate_work,
    read_device,
    recalibrated,
    work_of,
)
from handheld.convert.source import Source
from handheld.runtime.profile_file import read_profile
from handheld.runtime.profile_record import Measurement, Profile
from handheld.sources import open_source, reopened

Progress = Callable[[str], Any]


def estimate(
    source: str | Path | nn.Module | Source | None,
    devices: Sequence[str],
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    precision: str | None = None,
    calibrate: Sequence[str | Path] = (),
    progress: Progress = lambda doing: None,
    **opening: Any,
) -> list[Estimate]:
    """Estimate latency and memory on phones that are not here.

    Args:
        source: as `handheld.open_source` takes it.
        devices: names of device tables that come with the package, or files of your own.
        frames, height, width: of the clip, in pixels.
        precision: a name in the precisions of each device's target; None is its default.
        calibrate: profiles measured on the devices, to scale the estimate by.
        progress: called with a word before each step.
        opening: `config`, `subfolder`, `causal`, `seed`, `teacher`, `example`.

    Returns:
        One estimate a device, in order.

    Raises ExportError for an unknown device, a profile of another device and a model that torch.export refuses;
    ModelError or DistillError for a source that cannot be opened.
    """
    tables = [read_device(name) for name in devices]
    opened = open_source(source, **opening)
    latents, _ = opened.example(frames, height, width)
    model, example = opened.model.to("meta"), latents.to("meta")
    found = []
    for table in tables:
        progress(f"Reading the graph for {table.title}")
        work = work_of(model, example, TARGETS[table.target], precision)
        calibration = _calibrated(table, [Path(path) for path in calibrate], progress) if calibrate else None
        found.append(estimate_work(work, table, calibration))
    return found


def _calibrated(device: DeviceTable, paths: Sequence[Path], progress: Progress) -> Calibration:
    """Rates of a device from profiles that were measured on it."""
    measured = []
    for path in paths:
        profile = read_profile(path)
        if profile.device.model not in device.models or profile.device.emulated:
            raise ExportError(
                f"{path} was measured on {profile.device.name}{' (emulated)' if profile.device.emulated else ''}; "
                f"{device.name} is {' or '.join(device.models)}. Calibrate each device on its own profiles."
            )
        runtime = TARGETS[device.target].runtime
        for subject in profile.subjects:
            if subject.runtime == runtime and subject.latency is not None:
                progress(f"Reading the graph of {subject.label}")
                measured.append((_work(path, profile, subject, device), subject.latency.median_ns / 1e9))
    return recalibrated(device, measured, ", ".join(path.name for path in paths))


def _work(path: Path, profile: Profile, subject: Measurement, device: DeviceTable) -> Work:
    origin = {} if subject.bundle is None else profile.bundles[subject.bundle].provenance
    opened = reopened(origin) if subject.input_shapes else None
    if opened is None or not subject.input_shapes:
        raise ExportError(
            f"{path}: {subject.label} does not say which model it is (its bundle names no source) or on "
            "what shape it ran, so its work cannot be computed."
        )
    example = torch.empty(subject.input_shapes[0], device="meta")
    known = TARGETS[device.target].precisions
    precision = subject.precision if subject.precision in known else None
    return work_of(opened.model.to("meta"), example, TARGETS[device.target], precision)
