"""The run folder: beginning one or going on in one, its metrics, and reading a finished one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from handheld.files import write_text

from . import schema
from .errors import DistillError
from .recipe import Recipe, parse_recipe

FORMAT_VERSION = 1


class RunFolder:
    """Paths in a run folder, and what is written while a run lasts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.run_json = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint"
        self.cache = path / "cache"

    def begin(self, recipe: Recipe | None, *, resume: bool) -> Recipe:
        """Check that a run can begin (or, with `resume`, go on) here, and return its recipe.

        A run that is resumed keeps its own recipe if `recipe` is None, and its own videos if `recipe` names none.
        Raises DistillError for a folder in use, one that cannot be written, and a recipe that differs from the
        run's.
        """
        self.ensure()
        if not resume:
            if self._occupied():
                raise DistillError(
                    f"{self.path} is not empty: go on with it with --resume, or choose another folder."
                )
        elif self.recipe.exists():
            before: Recipe = parse_recipe(self.recipe)
            if recipe is None:
                return before
            if not recipe.data.videos:
                recipe = replace(recipe, data=replace(recipe.data, videos=before.data.videos))
            if differing := schema.differences(before, recipe):
                listed = "".join(f"\n  {line}" for line in differing)
                raise DistillError(
                    f"{self.path} was begun with another recipe (its value, then the new one):{listed}\nRestore "
                    "these values to resume, or choose another folder for a new run."
                )
        elif self._occupied():
            raise DistillError(
                f"{self.path} is not a run folder (it has no recipe.yaml): there is nothing to resume."
            )
        if recipe is None:
            raise DistillError(f"{self.path} holds no run to resume: give a recipe.")
        return recipe

    def ensure(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise DistillError(
                f"Cannot write the run folder {self.path}: {error.strerror}. Choose another folder."
            ) from None

    def write_recipe(self, recipe: Recipe) -> None:
        write_text(self.recipe, schema.to_yaml(recipe), DistillError)

    def record(self, record: dict[str, object]) -> None:
        """Add a line to metrics.jsonl."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise DistillError(f"Cannot write {self.metrics}: {error.strerror}.") from error

    def records(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; a line that a kill cut short is left out."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record

    def rewind(self, step: int) -> None:
        """Remove the lines of metrics.jsonl that are of later steps than `step`."""
        kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
        write_text(self.metrics, "".join(kept), DistillError)

    def drop_cache(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)

    def _occupied(self) -> bool:
        # The cache checks its own content. A name that begins with a dot is what a killed write left.
        return any(entry.name != "cache" and not entry.name.startswith(".") for entry in self.path.iterdir())


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the run folder.
        teacher_name: for `load_teacher`.
        teacher_source: for `load_teacher`; None for the teacher's own default.
        student: folder for `handheld.load_decoder`.
        held_out: safetensors file with `latents`, `frames`, `teacher_frames` and `student_frames`.
        facts: run.json as it is.
    """

    path: Path
    teacher_name: str
    teacher_source: str | None
    student: Path
    held_out: Path
    facts: dict[str, Any]

    def load_held_out(self) -> dict[str, Tensor]:
        """Latents float32 (N, C, T', H', W'); frames uint8 RGB (N, 3, T, H, W)."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.held_out)
        except (SafetensorError, OSError) as error:
            raise DistillError(f"{self.held_out} cannot be read ({error}): run the distillation again.") from None


def read_run(path: str | Path) -> Run:
    """Read a run folder. Raises DistillError if it is none, unfinished, or of another version."""
    folder = Path(path)
    file = folder / "run.json"
    if not file.is_file():
        unfinished = (folder / "recipe.yaml").is_file()
        hint = "is unfinished: go on with --resume" if unfinished else "is not a run folder: it has no run.json"
        raise DistillError(f"{folder} {hint}.")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        version = facts["format_version"]
        run = Run(
            folder,
            facts["teacher"]["name"],
            facts["teacher"]["source"],
            folder / "student",
            folder / "held_out.safetensors",
            facts,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DistillError(f"{file} is not a run description ({type(error).__name__}: {error}).") from None
    if version != FORMAT_VERSION:
        raise DistillError(f"{file} has format version {version}; this handheld reads {FORMAT_VERSION}.")
    missing = [entry.name for entry in (run.student, run.held_out) if not entry.exists()]
    if missing:
        raise DistillError(f"{folder} lacks {' and '.join(missing)}, which run.json promises: it is not whole.")
    return run
