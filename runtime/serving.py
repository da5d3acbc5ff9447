"""The child's end of a child process: answering requests."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

Operations = Mapping[str, Callable[..., dict[str, Any]]]


def serve(operations: Operations) -> None:
    """Answer requests until there are no more.

    One JSON object a line: a request on stdin, {"op": name, ...arguments}, and its reply on stdout. A request that
    fails replies {error, kind}, where kind is the class of the error.
    """
    # Native libraries print to descriptor 1: keep the real one for replies and send theirs to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = operations[request.pop("op")](**request)
        except Exception as error:  # all that can go wrong here is news for the parent, which outlives us
            reply = {"error": str(error), "kind": type(error).__name__}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
