"""Distillation: recipes, video data, losses, the trainer and the run folder that it leaves."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import DataError, DistillError, DistillInterrupted, RecipeError
from .recipe import Recipe, load_recipe, parse_recipe, shipped_recipes

if TYPE_CHECKING:
    from .metrics import Scores
    from .progress import LoggedProgress, Progress, RichProgress
    from .run import RunSummary, distill
    from .run_folder import Run, read_run

__all__ = [
    "DataError",
    "DistillError",
    "DistillInterrupted",
    "LoggedProgress",
    "Progress",
    "Recipe",
    "RecipeError",
    "RichProgress",
    "Run",
    "RunSummary",
    "Scores",
    "distill",
    "load_recipe",
    "parse_recipe",
    "read_run",
    "shipped_recipes",
]

# Imported when first asked for: torch takes seconds, and reading a recipe does not need it.
_LAZY = {
    "LoggedProgress": "progress",
    "Progress": "progress",
    "RichProgress": "progress",
    "Run": "run_folder",
    "RunSummary": "run",
    "Scores": "metrics",
    "distill": "run",
    "read_run": "run_folder",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


class _CallablePackage(ModuleType):
    """`handheld.distill(...)` calls `distill`, though an import gives that name to this package."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return __getattr__("distill")(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
