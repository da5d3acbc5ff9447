"""Holding back what native libraries write to stderr while they load a model."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


class NativeLog:
    """What was written to stderr inside `held_back`, without the lines known to be noise."""

    text = ""


@contextmanager
def held_back(noise: re.Pattern[str]) -> Iterator[NativeLog]:
    """Hold back stderr, both file descriptor 2 and `sys.stderr`, for the length of the block.

    Afterwards lines that begin with a match of `noise` are dropped; the others are passed on, or, where the
    block raised, left in the log for its error message. Stderr belongs to the whole process, so other threads'
    lines are held back too: keep the block short, and import nothing in it (a logging handler made in it
    would keep the stand-in).
    """
    log = NativeLog()
    raised = True
    sys.stderr.flush()
    outside = os.dup(2)
    # Bindings may write to either: outside of a terminal (notebooks, tests) the two are not the same.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace", buffering=1) as file:
        os.dup2(file.fileno(), 2)
        try:
            with redirect_stderr(file):
                yield log
            raised = False
        finally:
            os.dup2(outside, 2)
            os.close(outside)
            file.seek(0)
            log.text = "".join(line for line in file if not noise.match(line))
            if not raised:
                sys.stderr.write(log.text)
