"""The file that a profile is: reading it strictly, writing it whole.

`schema/profile.schema.json` says the same as JSON Schema, for writers in other languages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from . import files, parsing
from .errors import RuntimeFailure
from .profile_record import (
    MEMORY_METRICS,
    PLATFORMS,
    RUNTIMES,
    THERMAL,
    BundleInfo,
    ComputeUnits,
    Conditions,
    Device,
    Flash,
    Limits,
    Measurement,
    Parity,
    Profile,
    Round,
    Settings,
)

SCHEMA_VERSION = 2

_TEXT = parsing.text()
_MAYBE_TEXT = parsing.nullable(_TEXT)
_COUNT, _POSITIVE = (parsing.integer(least) for least in (0, 1))
_MAYBE_COUNT, _MAYBE_POSITIVE = parsing.nullable(_COUNT), parsing.nullable(_POSITIVE)
_MAYBE_BOOLEAN = parsing.nullable(parsing.boolean)
_MAYBE_SHAPES = parsing.nullable(parsing.sequence(parsing.sequence(_POSITIVE, least=1), least=1))
_MAYBE_ERROR = parsing.nullable(parsing.number(0))

_SETTINGS = parsing.record(
    Settings,
    {
        "repeat": _POSITIVE,
        "warmup": _COUNT,
        "rounds": _POSITIVE,
        "threads": _MAYBE_POSITIVE,
        "cooldown_ns": _COUNT,
        "interleaved": parsing.boolean,
    },
)
_DEVICE = parsing.record(
    Device,
    {
        "platform": parsing.one_of(*PLATFORMS),
        "model": _MAYBE_TEXT,
        "soc": _MAYBE_TEXT,
        "architecture": _MAYBE_TEXT,
        "os": _MAYBE_TEXT,
        "os_version": _MAYBE_TEXT,
        "cores": _MAYBE_POSITIVE,
        "cores_available": _MAYBE_POSITIVE,
        "ram_bytes": _MAYBE_POSITIVE,
        "memory_limit_bytes": _MAYBE_POSITIVE,
        "memory_metric": parsing.nullable(parsing.one_of(*MEMORY_METRICS)),
        "emulated": _MAYBE_BOOLEAN,
    },
)
_BUNDLE = parsing.record(
    BundleInfo,
    {
        "name": _TEXT,
        "created_utc": _TEXT,
        "provenance": parsing.mapping(),
        "versions": parsing.mapping(_TEXT),
    },
)
_CONDITIONS = parsing.record(
    Conditions,
    {
        "thermal": parsing.nullable(parsing.one_of(*THERMAL)),
        "low_power_mode": _MAYBE_BOOLEAN,
        "charging": _MAYBE_BOOLEAN,
        "battery_percent": parsing.nullable(parsing.integer(0, most=100)),
        "load_average_1min": parsing.nullable(parsing.number(0)),
    },
)
_FLASH = parsing.record(
    Flash,
    {
        "budget_bytes": _MAYBE_POSITIVE,
        "bytes_read": _MAYBE_COUNT,
        "neurons_selected": _MAYBE_COUNT,
        "cache_hits": _MAYBE_COUNT,
    },
)
_ROUND = parsing.record(
    Round,
    {
        "load_ns": _MAYBE_POSITIVE,
        "first_run_ns": _MAYBE_POSITIVE,
        "latency_ns": parsing.sequence(_POSITIVE),
        "first_frame_ns": parsing.sequence(_POSITIVE),
        "baseline_bytes": _MAYBE_POSITIVE,
        "peak_bytes": _MAYBE_POSITIVE,
        "flash": parsing.nullable(_FLASH),
        "before": _CONDITIONS,
        "after": _CONDITIONS,
    },
)
_PARITY = parsing.record(
    Parity,
    {
        "output": _TEXT,
        "method": _MAYBE_TEXT,
        "finite": parsing.boolean,
        "max_abs_error": _MAYBE_ERROR,
        "mean_squared_error": _MAYBE_ERROR,
        "peak": _MAYBE_ERROR,
    },
)
_SUBJECT = parsing.record(
    Measurement,
    {
        "label": _TEXT,
        "role": parsing.one_of("student", "teacher"),
        "bundle": _MAYBE_COUNT,
        "artifact": _MAYBE_TEXT,
        "target": _MAYBE_TEXT,
        "runtime": parsing.one_of(*RUNTIMES),
        "runtime_version": _MAYBE_TEXT,
        "precision": _TEXT,
        "sha256": parsing.text("[0-9a-f]{64}", "a SHA-256 in 64 lowercase hex digits"),
        "size_bytes": _POSITIVE,
        "method": _MAYBE_TEXT,
        "input_shapes": _MAYBE_SHAPES,
        "output_shapes": _MAYBE_SHAPES,
        "unit": parsing.one_of("frame", "token"),
        "units_per_run": _POSITIVE,
        "prompt_tokens": _MAYBE_POSITIVE,
        "threads": _MAYBE_POSITIVE,
        "compute_units": parsing.record(
            ComputeUnits, {"asked": _MAYBE_TEXT, "observed": parsing.nullable(parsing.mapping(_COUNT))}
        ),
        "tolerance": parsing.nullable(
            parsing.record(Limits, {"max_abs": _MAYBE_ERROR, "min_psnr_db": parsing.nullable(parsing.number())})
        ),
        "rounds": parsing.sequence(_ROUND),
        "parity": parsing.nullable(parsing.sequence(_PARITY, least=1)),
        "error": _MAYBE_TEXT,
    },
)
_PROFILE = parsing.record(
    Profile,
    {
        "created_utc": parsing.text(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "a UTC time such as 2026-11-23T18:00:00Z"),
        "command": _MAYBE_TEXT,
        "software": parsing.mapping(_TEXT),
        "settings": _SETTINGS,
        "device": _DEVICE,
        "bundles": parsing.sequence(_BUNDLE),
        "subjects": parsing.sequence(_SUBJECT, least=1),
    },
)


def parse_profile(text: str, source: str) -> Profile:
    """Parse a profile; `source` names it in errors.

    Raises RuntimeFailure: for another schema version, naming it and the one understood; else for every fault at
    once (unknown, missing and duplicate keys, wrong types, labels used twice, bundles that there are not).
    """
    try:
        tree = parsing.load_json(text)
    except ValueError as error:
        raise RuntimeFailure(f"{source} is not valid JSON: {error}. Measure again, or share it again.") from error
    if not isinstance(tree, dict) or "schema_version" not in tree:
        raise RuntimeFailure(f"{source} has no schema_version: it is not a profile.")
    version = tree.pop("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise RuntimeFailure(
            f"{source} has schema_version {version!r}; this handheld understands {SCHEMA_VERSION}. Measure again "
            "with this version, or read it with the one that wrote it."
        )
    faults: list[str] = []
    profile = _PROFILE(tree, "", faults)
    if not faults:
        faults = _disagreements(profile)
    if faults:
        raise RuntimeFailure(f"{source} is not a valid profile:\n" + "\n".join(f"  {fault}" for fault in faults))
    return profile


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """Read a profile. Raises RuntimeFailure as `parse_profile` does, and for a file that cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RuntimeFailure(f"{path} is not UTF-8 text: it is not a profile.") from error
    except OSError as error:
        raise RuntimeFailure(
            f"{path} cannot be read ({error.strerror}). Give the JSON that `handheld profile` or an app wrote."
        ) from error
    return parse_profile(text, str(path))


def to_json(profile: Profile) -> str:
    """As written to a file."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(profile)}, indent=1, allow_nan=False) + "\n"


def write_profile(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Write a profile, whole or not at all. Raises RuntimeFailure where it cannot be written."""
    files.write_atomically(Path(path), to_json(profile).encode())


def _disagreements(profile: Profile) -> list[str]:
    """Faults between fields that are each well-formed."""
    faults = []
    labels = [one.label for one in profile.subjects]
    faults += [f'subjects: label "{name}" is used twice' for name in sorted(_twice(labels))]
    for index, one in enumerate(profile.subjects):
        if one.bundle is not None and one.bundle >= len(profile.bundles):
            faults.append(f"subjects[{index}].bundle: {one.bundle}, but there are {len(profile.bundles)} bundles")
        for place, entry in enumerate(one.parity or ()):
            figures = (entry.max_abs_error, entry.mean_squared_error, entry.peak)
            if any((figure is not None) != entry.finite for figure in figures):
                where = f"subjects[{index}].parity[{place}]"
                faults.append(f"{where}: its figures are to be null exactly where finite is false")
    return faults


def _twice(values: Sequence[str]) -> set[str]:
    return {value for value in values if values.count(value) > 1}
