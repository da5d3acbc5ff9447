"""What a device's storage and memory give, each figure with its source."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import RuntimeFailure
from ...files import write_atomically

DEVICES = {
    "m1-max": Path(__file__).parent / "devices" / "m1-max.json",
    "snapdragon-8-gen-3": Path(__file__).parent / "devices" / "snapdragon-8-gen-3.json",
}

_FORMAT = "handheld.flash.device"


@dataclass(frozen=True)
class StoragePoint:
    """Random reads of `chunk_bytes`, `threads` of them in flight, gave `bytes_per_s` in total."""

    chunk_bytes: int
    threads: int
    bytes_per_s: float
    source: str


@dataclass(frozen=True)
class StorageCurve:
    """Throughput of random reads against their size and the number in flight.

    Between points it is interpolated, linear in the logarithms, first over sizes at each number of threads and then
    over threads. Outside of what was measured the nearest figure holds.
    """

    points: tuple[StoragePoint, ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise RuntimeFailure("A storage curve needs at least one point.")
        for point in self.points:
            if point.chunk_bytes < 1 or point.threads < 1 or not 0 < point.bytes_per_s < math.inf:
                raise RuntimeFailure(f"{point} is no point of a storage curve: its figures are over zero.")

    def bytes_per_s(self, chunk_bytes: float, threads: float) -> float:
        by_threads: dict[int, dict[int, float]] = {}
        for point in self.points:
            by_threads.setdefault(point.threads, {})[point.chunk_bytes] = point.bytes_per_s
        return _interpolate({count: _interpolate(row, chunk_bytes) for count, row in by_threads.items()}, threads)


@dataclass(frozen=True)
class Device:
    """A device to plan for. None is unknown, and leaves that part of the cost out.

    copy_bytes_per_s: memory to memory, on one thread, which moves rows of the table.
    compute_bytes_per_s: weights from memory, on the threads that compute; arithmetic on weights is limited by it.
    """

    name: str
    storage: StorageCurve
    read_alignment_bytes: int = 4096
    copy_bytes_per_s: float | None = None
    compute_bytes_per_s: float | None = None
    memory_source: str | None = None

    def to_json(self) -> str:
        content = asdict(self)
        content["storage"] = content["storage"]["points"]
        return json.dumps({"format": _FORMAT, "format_version": 1, **content}, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write the file that `read_device` reads. Raises RuntimeFailure for a folder that cannot be written."""
        write_atomically(path, self.to_json().encode())


def read_device(source: str | Path) -> Device:
    """A device of the table DEVICES by its name, or a file that `calibrate` or `Device.write` wrote.

    Raises RuntimeFailure for an unknown name and for a file that is no device.
    """
    path = DEVICES.get(str(source), Path(source))
    if not path.is_file():
        raise RuntimeFailure(
            f"{source} is no device: give one of {', '.join(DEVICES)}, or a file of `handheld llm calibrate`."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _device(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RuntimeFailure(f"{path} is not a device file: {error}. Write it again.") from error


def _device(content: dict[str, Any]) -> Device:
    if content.pop("format") != _FORMAT or content.pop("format_version") != 1:
        raise ValueError(f"its format is not {_FORMAT} of version 1")
    points = tuple(StoragePoint(**point) for point in content.pop("storage"))
    return Device(storage=StorageCurve(points), **content)


def _interpolate(values: dict[int, float], at: float) -> float:
    keys = sorted(values)
    if at <= keys[0]:
        return values[keys[0]]
    for low, high in itertools.pairwise(keys):
        if at <= high:
            share = math.log(at / low) / math.log(high / low)
            return math.exp((1 - share) * math.log(values[low]) + share * math.log(values[high]))
    return values[keys[-1]]
