"""Keeps the chatter of the lowering libraries off the user's terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

# The text of the block around the one that is entered.
_OUTER: ContextVar[io.StringIO | None] = ContextVar("outer", default=None)


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Collect what Python code writes to stdout, stderr, warnings and the log, instead of showing it.

    coremltools draws progress bars and warns of every torch it was not tested with; executorch and torchao
    log what they could not import. Errors are raised, so nothing that matters is lost; the text is yielded
    for the message of one. A block inside another hands what it collected to the outer one, whose message may be
    made of it.
    """
    text = io.StringIO()
    outer = _OUTER.get()
    token = _OUTER.set(text)
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
        _OUTER.reset(token)
        if outer is not None:
            outer.write(text.getvalue())
