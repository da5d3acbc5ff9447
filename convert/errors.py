"""Errors that the user of `handheld.convert` can act on."""


class ExportError(RuntimeError):
    """A model that cannot be lowered to the target that was asked for.

    The message names what was given, what is allowed and what to do next.
    """
