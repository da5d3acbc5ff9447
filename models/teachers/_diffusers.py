"""The only place that imports diffusers: it takes seconds and reports things that no user of ours can act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ..errors import ModelError

# Importing diffusers imports torchao where it is installed; builds of torchao for another Python or torch
# then report kernels that they cannot load, and torch reports how torchao registers its enums.
_IMPORT_NOISE = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


@contextmanager
def quiet(*loggers: str, level: int = logging.ERROR) -> Iterator[None]:
    """Hold the named loggers at `level` for the duration of the block."""
    before = [(logger, logger.level) for logger in map(logging.getLogger, loggers)]
    for logger, _ in before:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in before:
            logger.setLevel(old)


def vae_class(name: str) -> Any:
    """A model class of diffusers by its name. Raises ModelError if diffusers or the class is not there."""
    return _from_module("diffusers", name)


def vae_part(name: str) -> Any:
    """A part that diffusers' autoencoders share, such as their `Decoder`. Raises ModelError as `vae_class` does."""
    return _from_module("diffusers.models.autoencoders.vae", name)


def _from_module(module: str, name: str) -> Any:
    try:
        with quiet(*_IMPORT_NOISE):
            return getattr(import_module(module), name)
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(
            f"Teachers need diffusers 0.35 or newer, with its class {name}; importing it says: {reason}. "
            "Install handheld's dependencies again (`make setup`); a torchvision that was built for another "
            "torch must be removed."
        ) from error
