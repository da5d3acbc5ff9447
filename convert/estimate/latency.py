"""From work to time: two rates, calibrated on published measurements, with the error that they really have.

    time = padded multiply-adds / attained rate + bytes moved by ops that overflow the cache / attained bandwidth

A roofline says max, not plus; over a graph of hundreds of ops, some bound by one and some by the other, the sum is
the better description and has a unique fit. The bandwidth is that of a graph's traffic before the runtime fuses
ops, so it comes out higher than the memory's. Fitted by least squares of the relative error, the attained rate of
multiply-adds not above the device's peak.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..errors import ExportError
from .device import DeviceTable, Figure, read_device
from .work import Work

# Four in five estimates are to lie within the band, were the logarithms of the errors normal.
_BAND_SIGMAS = 1.2816


@dataclass(frozen=True)
class PublishedRow:
    """A published measurement.

    Attributes:
        model: for people.
        work: of the assumed clip, on the graph of the device's target.
        seconds: of one run; None where it ran out of memory.
    """

    model: str
    work: Work
    seconds: float | None


@dataclass(frozen=True)
class DeviceRates:
    """What a device attains: multiply-adds a second, and bytes of graph traffic a second."""

    multiply_adds: float
    bytes: float

    def seconds(self, work: Work, cache_bytes: int | None) -> tuple[float, float]:
        """(computing, moving) of one run."""
        return work.padded_multiply_adds / self.multiply_adds, work.moved_bytes(cache_bytes) / self.bytes


@dataclass(frozen=True)
class Calibration:
    """Rates, and how far off they are.

    Attributes:
        source: what they were fitted on.
        rates: on `device`.
        scale: measured over estimated time of the user's own profiles; 1 without any.
        errors: relative errors, each of a row that was left out of its fit.
    """

    source: str
    device: DeviceTable
    rates: DeviceRates
    scale: float
    errors: tuple[float, ...]

    @property
    def median_error(self) -> float:
        """Of the absolute relative errors, each row left out of its own fit."""
        return statistics.median(map(abs, self.errors))

    @property
    def band(self) -> float:
        """Factor by which a time may be off either way, in four cases of five."""
        return math.exp(_BAND_SIGMAS * math.sqrt(statistics.fmean(math.log1p(error) ** 2 for error in self.errors)))


@dataclass(frozen=True)
class Estimate:
    """What a decoder would take; an estimate.

    Attributes:
        seconds: of one run; None where the device has no rates and nothing was calibrated.
        low, high: the band, four cases in five.
        computing: share of the time that multiply-adds take; the rest moves bytes.
        memory_bytes: weights and activations at their peak. The runtime's own memory comes on top.
        fits: "yes", "with the entitlement", "no"; None where the device's limit is not known.
        load_seconds: reading the weights from flash at its fastest; None where that is not known.
    """

    work: Work
    device: DeviceTable
    calibration: Calibration | None
    seconds: float | None
    low: float | None
    high: float | None
    computing: float | None
    memory_bytes: int
    fits: str | None
    load_seconds: float | None

    @property
    def frames_per_second(self) -> float | None:
        return self.work.frames / self.seconds if self.seconds else None

    @property
    def bound(self) -> str | None:
        """What most of the time goes into."""
        if self.computing is None:
            return None
        return "multiply-adds" if self.computing >= 0.5 else "memory traffic"


def estimate_work(work: Work, device: DeviceTable, calibration: Calibration | None = None) -> Estimate:
    """A verdict on one run of a decoder.

    Args:
        calibration: rates; None is the published ones where the device has peak figures to scale them by.
    """
    memory_bytes = work.weight_bytes + work.peak_bytes
    if calibration is None and device.bytes_per_second.value and device.multiply_adds_per_second.value:
        calibration = transferred(published(), device)
    seconds = low = high = computing = None
    if calibration is not None:
        parts = calibration.rates.seconds(work, _cache_bytes(device))
        seconds = sum(parts) * calibration.scale
        low, high = seconds / calibration.band, seconds * calibration.band
        computing = parts[0] / sum(parts)
    fastest = device.storage.fastest
    return Estimate(
        work=work,
        device=device,
        calibration=calibration,
        seconds=seconds,
        low=low,
        high=high,
        computing=computing,
        memory_bytes=memory_bytes,
        fits=_fits(memory_bytes, device),
        load_seconds=work.weight_bytes / fastest if fastest else None,
    )


@cache
def published() -> Calibration:
    """Rates of the iPhone 16 Pro, from the figures of the Turbo-VAED paper (`published.json`)."""
    device = read_device("iphone-16-pro")
    rows = [row for row in published_rows() if row.seconds is not None]
    return Calibration(
        source="Turbo-VAED paper (arXiv 2508.09136), iPhone 16 Pro",
        device=device,
        rates=fit_rates(rows, device),
        scale=1.0,
        errors=left_out_errors(rows, device),
    )


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """The published measurements, with the work that `benchmarks/published_work.py` computed."""
    tree = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
    return tuple(
        PublishedRow(
            entry["model"],
            Work(**entry["work"] | {"op_bytes": tuple(map(tuple, entry["work"]["op_bytes"]))}),
            entry["work"]["frames"] / entry["frames_per_second"] if entry["frames_per_second"] else None,
        )
        for entry in tree["rows"]
    )


def fit_rates(rows: Sequence[PublishedRow], device: DeviceTable) -> DeviceRates:
    """Rates with the least squared relative error, multiply-adds not above the device's peak.

    Rows of the same work and time count once: they are one measurement of one graph.
    """
    rows = list({(row.work, row.seconds): row for row in rows}.values())
    cache_bytes, peak = _cache_bytes(device), device.multiply_adds_per_second.value
    seconds = np.array([row.seconds for row in rows])
    compute = np.array([row.work.padded_multiply_adds for row in rows]) / seconds
    moved = np.array([row.work.moved_bytes(cache_bytes) for row in rows]) / seconds
    # Seconds per multiply-add and per byte: free, at either end of what is allowed, or one of them alone.
    floor = 1 / peak if peak else 0.0
    candidates = [
        np.linalg.lstsq(np.stack([compute, moved], 1), np.ones(len(rows)), rcond=None)[0],
        np.array([floor, moved @ (1 - floor * compute) / (moved @ moved)]),
        np.array([compute.sum() / (compute @ compute), 0.0]),
    ]
    allowed = [pair for pair in candidates if pair[0] >= floor and pair[1] >= 0]
    if not allowed:
        raise ExportError("No rates fit these measurements: they are faster than the device's peak allows.")
    best = min(allowed, key=lambda pair: float(((pair[0] * compute + pair[1] * moved - 1) ** 2).sum()))
    return DeviceRates(*(1 / per if per > 0 else math.inf for per in map(float, best)))


def left_out_errors(rows: Sequence[PublishedRow], device: DeviceTable) -> tuple[float, ...]:
    """Relative error of each row's time under rates fitted without it, and without rows of the same work."""
    errors = []
    for row in rows:
        rates = fit_rates([other for other in rows if other.work != row.work], device)
        assert row.seconds
        errors.append(sum(rates.seconds(row.work, _cache_bytes(device))) / row.seconds - 1)
    return tuple(errors)


def transferred(calibration: Calibration, device: DeviceTable) -> Calibration:
    """Rates for another device, as far below its peaks as they are on the one that was measured."""
    own = calibration.device
    if device.name == own.name:
        return calibration
    rates = DeviceRates(
        calibration.rates.multiply_adds * _ratio(device.multiply_adds_per_second, own.multiply_adds_per_second),
        calibration.rates.bytes * _ratio(device.bytes_per_second, own.bytes_per_second),
    )
    return Calibration(
        f"{calibration.source}, scaled by peak rates", device, rates, calibration.scale, calibration.errors
    )


def recalibrated(device: DeviceTable, measured: Sequence[tuple[Work, float]], source: str) -> Calibration:
    """The published rates times what the user measured on a device.

    One factor for all: the geometric mean of measured over estimated time. With three models or more the band is of
    the user's own errors, each left out of its factor; with fewer it stays that of the published rows.

    Args:
        measured: (work, seconds of one run) of each model.
        source: what they come from, for people.

    Raises ExportError for nothing measured.
    """
    if not measured:
        raise ExportError("There is nothing to calibrate on: no model of the profile was measured.")
    base = published()
    if device.bytes_per_second.value and device.multiply_adds_per_second.value:
        base = transferred(base, device)
    logs = [math.log(seconds / sum(base.rates.seconds(work, _cache_bytes(device)))) for work, seconds in measured]
    errors = base.errors
    if len(logs) >= 3:
        others = [statistics.fmean(logs[:place] + logs[place + 1 :]) for place in range(len(logs))]
        errors = tuple(math.expm1(other - own) for other, own in zip(others, logs))
    return Calibration(source, device, base.rates, math.exp(statistics.fmean(logs)), errors)


def _fits(memory_bytes: int, device: DeviceTable) -> str | None:
    limit, entitled = device.memory_limit_bytes.value, device.memory_limit_entitled_bytes.value
    if limit is None:
        return None
    if memory_bytes <= limit:
        return "yes"
    return "with the entitlement" if entitled and memory_bytes <= entitled else "no"


def _cache_bytes(device: DeviceTable) -> int | None:
    return None if device.cache_bytes.value is None else int(device.cache_bytes.value)


def _ratio(one: Figure, other: Figure) -> float:
    assert one.value
    assert other.value
    return one.value / other.value
