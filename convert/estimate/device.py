"""What is known of a phone, each figure with its source. Unknown is null."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handheld.runtime import parsing

from ..errors import ExportError

FORMAT_VERSION = 1

_FOLDER = Path(__file__).parent / "devices"

# Every table that comes with the package, by the name that `--device` takes.
DEVICES = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


@dataclass(frozen=True)
class Figure:
    """A number that somebody else states, and who. None is unknown."""

    value: float | None
    source: str


@dataclass(frozen=True)
class StoragePoint:
    """One point of the storage curve: read rate of blocks of one size, in sequence or at random."""

    block_bytes: int
    random: bool
    bytes_per_second: float


@dataclass(frozen=True)
class Storage:
    """Read rates by block size; empty where they are not known."""

    points: tuple[StoragePoint, ...]
    source: str

    @property
    def fastest(self) -> float | None:
        """Bytes a second at best."""
        return max((point.bytes_per_second for point in self.points), default=None)


@dataclass(frozen=True)
class DeviceTable:
    """A phone, as the estimate knows it.

    Attributes:
        name: as in `--device`.
        title: for people.
        models: what the system calls it, as in a profile's `device.model`.
        target: what is exported for it.
        multiply_adds_per_second: peak in fp16, of the fastest unit that a decoder runs on.
        bytes_per_second: peak of main memory.
        cache_bytes: last level, before main memory.
        ram_bytes: of the device.
        memory_limit_bytes: most that an app may take.
        memory_limit_entitled_bytes: the same with the system's entitlement or flag for more.
        storage: read rates.
    """

    name: str
    title: str
    models: tuple[str, ...]
    target: str
    multiply_adds_per_second: Figure
    bytes_per_second: Figure
    cache_bytes: Figure
    ram_bytes: Figure
    memory_limit_bytes: Figure
    memory_limit_entitled_bytes: Figure
    storage: Storage


_TEXT = parsing.text()
_FIGURE = parsing.record(Figure, {"value": parsing.nullable(parsing.number(1)), "source": _TEXT})
_POINT = parsing.record(
    StoragePoint,
    {"block_bytes": parsing.integer(1), "random": parsing.boolean, "bytes_per_second": parsing.number(1)},
)
_FIGURES = (
    "multiply_adds_per_second",
    "bytes_per_second",
    "cache_bytes",
    "ram_bytes",
    "memory_limit_bytes",
    "memory_limit_entitled_bytes",
)
_CHECKS: Mapping[str, parsing.Check] = {
    "name": _TEXT,
    "title": _TEXT,
    "models": parsing.sequence(_TEXT, least=1),
    "target": _TEXT,
    **dict.fromkeys(_FIGURES, _FIGURE),
    "storage": parsing.record(Storage, {"points": parsing.sequence(_POINT), "source": _TEXT}),
}


def read_device(name: str) -> DeviceTable:
    """A table that comes with the package, by its name; or, for anything that ends in `.json`, the user's own.

    Raises ExportError with the names that there are, or with what is wrong with a file.
    """
    path = Path(name) if name.endswith(".json") else _FOLDER / f"{name}.json"
    if not name.endswith(".json") and name not in DEVICES:
        raise ExportError(
            f"No device {name!r}. There are {', '.join(DEVICES)}; or give a table of yours as a .json file."
        )
    try:
        tree: Any = parsing.load_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} is no readable device table: {error}. See docs/estimate.md.") from error
    version = tree.pop("format_version", None) if isinstance(tree, dict) else None
    if version != FORMAT_VERSION:
        raise ExportError(f"{path} has format_version {version!r}; this handheld reads {FORMAT_VERSION}.")
    faults: list[str] = []
    table = parsing.record(DeviceTable, _CHECKS)(tree, "", faults)
    if faults:
        raise ExportError(f"{path} is no device table:\n" + "\n".join(f"  {fault}" for fault in faults))
    return table
