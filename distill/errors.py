"""Errors that the user of `handheld.distill` can act on."""


class DistillError(RuntimeError):
    """A distillation that cannot start or go on. The message says what was given and what to do next."""


class RecipeError(DistillError):
    """A recipe with unknown keys, wrong types or impossible values; every fault is listed with its line."""


class DataError(DistillError):
    """A video, a folder of videos or a cache that cannot be used."""


class DistillInterrupted(DistillError):
    """A distillation that was asked to stop, and did so after saving a checkpoint."""
