"""Keeps the chatter of the lowering libraries off the user's terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Collect what Python code writes to stdout, stderr, warnings and the log, instead of showing it.

    coremltools draws progress bars and warns of every torch it was not tested with; executorch and torchao
    log what they could not import. Errors are raised, so nothing that matters is lost; the text is yielded
    for the message of one.
    """
    text = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(text),
            contextlib.redirect_stderr(text),
        ):
            warnings.simplefilter("ignore")
            yield text
    finally:
        logging.disable(before)
