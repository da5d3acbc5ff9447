"""What `export` and its like can be pointed at, and the table of ways to open it.

A new way is one function here and one line in `WAYS`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from handheld.convert.source import Source, source_of
from handheld.distill import read_run
from handheld.latents_file import read_latents
from handheld.models import FAMILIES, LatentStatistics, ModelError, from_preset, load_decoder
from handheld.models.checkpoint import locate
from handheld.models.reading import read_json
from handheld.models.teachers import TEACHERS, Teacher, load_teacher

__all__ = ["WAYS", "Asked", "Source", "Way", "open_source", "reopened", "with_latents_of"]

_FACTORY = re.compile(r"(?P<module>[\w./~-]+):(?P<name>\w+)")


@dataclass(frozen=True)
class Asked:
    """What the user named, as `open_source` takes it."""

    text: str
    config: str | None = None
    subfolder: str | None = None
    causal: bool = False
    seed: int = 0
    teacher: str | None = None

    @property
    def path(self) -> Path:
        return Path(self.text)

    def refuse(self, what: str, *, config: bool = False, causal: bool = False, subfolder: bool = False) -> None:
        """Raise ModelError for an option that would be ignored; those that are True may be given."""
        given = {"config": self.config, "causal": self.causal, "subfolder": self.subfolder}
        allowed = {"config": config, "causal": causal, "subfolder": subfolder}
        for name, value in given.items():
            if value and not allowed[name]:
                shown = f"--{name}" if value is True else f"--{name} {value}"
                raise ModelError(f"{shown} does not go with {what}: leave it out.")


@dataclass(frozen=True)
class Way:
    """One way to get a source.

    Attributes:
        what: a phrase for help and errors.
        fits: whether this is what the user named.
        open: opens it; raises ModelError or DistillError saying what is wrong with it.
    """

    what: str
    fits: Callable[[Asked], bool]
    open: Callable[[Asked], Source]


def open_source(
    source: str | Path | nn.Module | Source | None,
    *,
    config: str | None = None,
    subfolder: str | None = None,
    causal: bool = False,
    seed: int = 0,
    teacher: str | None = None,
    example: Tensor | None = None,
) -> Source:
    """Open what the user named.

    Args:
        source: a run folder, a preset (random weights), a checkpoint file, a folder or hub id of a diffusers
            autoencoder or of `save_pretrained`, `package.module:factory` or `file.py:factory`; a module. With
            `teacher`, the folder or hub id of its weights, or None for the teacher's own. A file or folder of the
            same name as a preset must be written as a path (`./ltx`).
        config: preset or JSON file, for a checkpoint without a configuration beside it.
        subfolder: inside a folder or hub id.
        causal: with a preset, its causal form.
        seed: of a preset's random weights.
        teacher: a name in `handheld.TEACHERS`: the source is that teacher's decoder.
        example: latents of one clip or image, for a module that does not say which it takes.

    Raises ModelError or DistillError saying what was looked for.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, nn.Module):
        name = type(source).__name__
        return source_of(source, name, {"source": "module", "class": name}, example=example)
    if source is None and teacher is None:
        raise ModelError(f"Nothing was named: {', '.join(way.what for way in WAYS)}, or a teacher.")
    asked = Asked(str(source or ""), config, subfolder, causal, seed, teacher)
    found = next((way for way in WAYS if way.fits(asked)), None)
    if found is None:
        raise ModelError(
            f"{source} is no preset ({', '.join(FAMILIES.presets)}), and no run folder or checkpoint of "
            f"that name is here. What can be named: {'; '.join(way.what for way in WAYS)}."
        )
    opened = found.open(asked)
    return opened if example is None else replace(opened, latents=example, latents_are_real=False)


def with_latents_of(source: Source, path: Path) -> Source:
    """A source with the real latents of a file, plain or normalised for a diffusion model, in place of its own.

    Raises ModelError for a file that is none, or holds latents of another space.
    """
    found = read_latents(path)
    takes = bool(getattr(source.model, "takes_normalised", False))
    latents = found.for_decoder(source.statistics, takes_normalised=takes)
    return source.with_latents(latents, f"clip of {path.name}")


def _teacher(asked: Asked) -> Source:
    asked.refuse("a teacher", subfolder=True)
    location = str(asked.path / asked.subfolder) if asked.subfolder else asked.text
    return _of_teacher(load_teacher(str(asked.teacher), location or None))


def _of_teacher(teacher: Teacher) -> Source:
    name = teacher.info.name
    provenance = {"source": "teacher", "teacher": {"name": name, "source": teacher.source}}
    found = source_of(teacher.decoder_module(), f"{name}-decoder", provenance)
    statistics = found.statistics or LatentStatistics.from_config(dict(teacher.vae.config))
    return replace(found, spec=teacher.spec, statistics=statistics)


def reopened(provenance: Mapping[str, Any]) -> Source | None:
    """The source that a bundle's provenance names, opened again. None where it does not say how.

    Raises ModelError or DistillError where it is no longer there.
    """
    kind = str(provenance.get("source"))
    if kind == "teacher":
        teacher = provenance["teacher"]
        return open_source(teacher["source"], teacher=teacher["name"])
    named = provenance.get(kind)
    if not isinstance(named, str):
        return None
    taken = {"preset": ("causal", "seed"), "checkpoint": ("config", "subfolder")}.get(kind, ())
    how: dict[str, Any] = {key: provenance[key] for key in taken if key in provenance}
    return open_source(named, **how)


def _preset(asked: Asked) -> Source:
    asked.refuse(f"the preset {asked.text}, which is a whole configuration", causal=True)
    torch.manual_seed(asked.seed)
    provenance = {
        "source": "preset",
        "preset": asked.text,
        "causal": asked.causal,
        "weights": "random",
        "seed": asked.seed,
    }
    return source_of(from_preset(asked.text, causal=asked.causal), asked.text, provenance)


def _run(asked: Asked) -> Source:
    asked.refuse("a run, which has its own configuration")
    run = read_run(asked.path)
    provenance = {
        "source": "run",
        "run": str(asked.path.resolve()),
        "teacher": run.facts["teacher"],
        "student": run.facts["student"],
        "seed": run.facts["seed"],
        "metrics": run.facts["metrics"],
    }
    found = source_of(load_decoder(run.student), asked.path.resolve().name, provenance)
    return replace(found, latents=run.load_held_out()["latents"])


def _checkpoint(asked: Asked) -> Source:
    asked.refuse("a checkpoint, whose configuration says whether it is causal", config=True, subfolder=True)
    provenance = {"source": "checkpoint", "checkpoint": asked.text}
    provenance |= {
        key: str(value) for key, value in (("config", asked.config), ("subfolder", asked.subfolder)) if value
    }
    if asked.config is None and (of := _teacher_of(asked)) is not None:
        return of
    decoder = load_decoder(asked.text, config=asked.config, subfolder=asked.subfolder)
    return source_of(decoder, asked.path.resolve().stem, provenance)


def _teacher_of(asked: Asked) -> Source | None:
    """The decoder of a diffusers autoencoder whose class is a teacher's; None for any other."""
    if asked.path.is_file():
        return None
    _, config = locate(asked.text, asked.subfolder, local_files_only=False)
    given = str(read_json(config).get("_class_name")) if config else ""
    # The embedded teacher is of a released family's class, and is asked for by its name.
    names = [name for name, info in TEACHERS.items() if info.diffusers_class == given and name != "embedded"]
    if not names or config is None:
        return None
    return _of_teacher(load_teacher(names[0], config.parent))


def _factory(asked: Asked) -> Source:
    asked.refuse("a module of one's own")
    match = _FACTORY.fullmatch(asked.text)
    assert match is not None
    module = _imported(match["module"])
    make = getattr(module, match["name"], None)
    if not callable(make):
        raise ModelError(f"{match['module']} has no function {match['name']}; it has {_functions(module)}.")
    made = make()
    if isinstance(made, Source):
        return made
    model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module) or not isinstance(example, Tensor | None):
        raise ModelError(
            f"{asked.text}() returned {type(made).__name__}; a torch module is needed, or (module, latents), where "
            "latents are an example of what it takes."
        )
    return source_of(model, match["name"], {"source": "factory", "factory": asked.text}, example=example)


def _imported(name: str) -> ModuleType:
    """A module by its dotted name, or a Python file. What it raises is the user's own, and is shown as it is."""
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # the module is there, and something that it imports is not
            raise ModelError(f"There is no module {name}: install it, or name its file as FILE.py:NAME.") from None
    path = Path(name).expanduser()
    if not path.is_file():
        raise ModelError(f"{path} is no file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _functions(module: Any) -> str:
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    return ", ".join(names) or "none"


WAYS: tuple[Way, ...] = (
    Way("--teacher NAME", lambda asked: asked.teacher is not None, _teacher),
    Way("a preset, with random weights", lambda asked: asked.text in FAMILIES.presets, _preset),
    Way(
        "a run folder",
        lambda asked: any((asked.path / name).is_file() for name in ("run.json", "recipe.yaml")),
        _run,
    ),
    Way(
        "package.module:factory or file.py:factory",
        lambda asked: _FACTORY.fullmatch(asked.text) is not None and not asked.path.exists(),
        _factory,
    ),
    Way(
        "a checkpoint file, or a folder or hub id with config.json and weights",
        lambda asked: asked.path.exists() or "/" in asked.text,
        _checkpoint,
    ),
)
