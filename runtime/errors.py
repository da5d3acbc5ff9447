"""Errors that the user of `handheld.runtime` can act on."""


class RuntimeFailure(RuntimeError):
    """A bundle, artefact or runtime that cannot be used.

    The message names what was given, what is allowed and what to do next.
    """


class BundleError(RuntimeFailure):
    """A bundle folder that is missing, altered, truncated or of another version."""


class RuntimeMissing(RuntimeFailure):
    """The runtime that an artefact needs is not installed or not available on this machine."""
