"""Errors that the user of `handheld.models` can act on."""


class ModelError(ValueError):
    """A model, configuration, checkpoint or latent that cannot be used.

    The message names what was given, what is allowed and what to do next.
    """
