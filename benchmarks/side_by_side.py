"""What the benchmarks of artefacts share: options, a bundle per variant, the JSON, cells of a table."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from handheld.convert import export
from handheld.convert.pipeline import versions
from handheld.convert.target import Target
from handheld.runtime import files
from handheld.runtime.profile import Profile, Subject, profile
from handheld.sources import Source

SCHEMA_VERSION = 1
AS_IS = "as-is"


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """How to measure, and where to write."""
    parser.add_argument("--repeat", type=int, default=10, help="timed runs a round")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(out))


def measured(subjects: list[Subject], options: argparse.Namespace) -> Profile:
    """`handheld profile` under the options."""
    note(f"measuring {', '.join(subject.label for subject in subjects)}")
    return profile(
        subjects, repeat=options.repeat, warmup=options.warmup, rounds=options.rounds, threads=options.threads
    )


def exported(
    label: str,
    source: Source,
    latents: Tensor,
    folder: str,
    target: Target,
    precision: str | None = None,
    calibration: tuple[Tensor, ...] = (),
) -> Subject:
    """A model lowered to one target, to be measured under `label`; `AS_IS` is what the others are compared with."""
    note(f"{source.name}: exporting {label}")
    bundle = export(
        source.model,
        latents,
        Path(folder) / label,
        targets=[target],
        precision=precision,
        calibration=calibration,
        name=f"{source.name} {label}",
        provenance=source.provenance,
    )
    return Subject(label, bundle, bundle.artifacts[0], "teacher" if label == AS_IS else "student")


class Report:
    """The JSON of a benchmark, written again after each result: an interrupted run keeps what it has.

    schema_version, command, created_utc, versions, device, settings, and the results under `key`.

    append: begin with the results that the file has.
    """

    def __init__(self, out: Path, key: str, append: bool = False) -> None:
        self.out, self.key = out, key
        self.tree: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "command": shlex.join(["python", *sys.argv]),
            "created_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "versions": versions(),
        }
        self.results: list[dict[str, Any]] = []
        if append and out.is_file():
            self.results = json.loads(out.read_text(encoding="utf-8"))[key]

    def add(self, result: dict[str, Any], profile: Profile) -> None:
        self.results.append(result)
        self.tree |= {"device": asdict(profile.device), "settings": asdict(profile.settings)}
        text = json.dumps({**self.tree, self.key: self.results}, indent=1, allow_nan=False) + "\n"
        files.write_atomically(self.out, text.encode())


def cell(value: float | None, width: int, form: str, unit: float = 1.0) -> str:
    """A figure in a table's column, `-` where it is not known."""
    return f"{'-' if value is None else format(value / unit, form):>{width}}"


def note(text: str) -> None:
    """Progress, beside the tables."""
    print(text, file=sys.stderr, flush=True)
