"""Telling a user's error, which gets one message, from a defect, which keeps its traceback."""

from __future__ import annotations

import typer


class CommandError(Exception):
    """An error of the command line itself: what was given, what is allowed and what to do next."""


def message_of(error: Exception) -> str | None:
    """The one message that the user gets, or None for a defect."""
    if isinstance(error, typer.Exit):
        return None
    # Imported here: by now the command has loaded what it needs, and `--help` never comes this way.
    from handheld.convert.errors import ExportError
    from handheld.distill.errors import DistillError
    from handheld.models.errors import ModelError
    from handheld.runtime.errors import RuntimeFailure

    if isinstance(error, CommandError | ModelError | DistillError | ExportError | RuntimeFailure):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}. Check the path, its permissions and the free space."
    return None
