"""The parent's end of a child process: starting it, asking it, and saying how it died."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, ClassVar, Self

from . import errors
from .bundle import Bundle
from .errors import RuntimeFailure
from .manifest import Artifact

_TAIL_CHARACTERS = 1500


class Child:
    """A fresh process that answers requests (`serving.serve`).

    What its native libraries write to stdout and stderr is kept, and ends up in the error when it fails.
    Use it in a `with`: leaving ends the process.

    Args:
        module: what it runs, as in `python -m`.
        noise: what the lines of its stderr begin with that are no news.

    Attributes:
        called: what errors call the process.
    """

    called: ClassVar[str] = "process"

    def __init__(self, module: str, noise: re.Pattern[str] | None = None) -> None:
        self._noise = noise
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        # -P: the folder that the user stands in must not shadow a module that the child imports.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
        )

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its reply.

        Raises what the child raised, if it is one of our errors; RuntimeFailure for anything else, with the
        signal's name where the process was killed or crashed.
        """
        requests, replies = self._process.stdin, self._process.stdout
        assert requests
        assert replies
        try:
            requests.write(json.dumps({"op": op, **arguments}) + "\n")
            requests.flush()
            line = replies.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeFailure(f"The {self.called} {self._death()} during {op}.{self._wrote()}")
        reply = json.loads(line)
        if "error" not in reply:
            return reply
        kind = getattr(errors, reply["kind"], None)
        if kind is None:
            raise RuntimeFailure(f"{reply['kind']}: {reply['error']}{self._wrote()}")
        raise kind(reply["error"] + (self._wrote() if kind is RuntimeFailure else ""))

    def _death(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"exited with {code}"
        name = signal.Signals(-code).name
        hint = " (out of memory, or killed by someone)" if name == "SIGKILL" else ""
        return f"died of {name}{hint}"

    def _wrote(self) -> str:
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        if self._noise:
            text = "\n".join(line for line in text.splitlines() if not self._noise.match(line))
        return f"\nIt wrote:\n{text[-_TAIL_CHARACTERS:]}" if text else ""

    def close(self) -> None:
        """End the process, at once if it is in the middle of something."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Worker(Child):
    """A fresh process that runs one artefact (`worker.py` has the requests)."""

    called = "worker"

    def __init__(self) -> None:
        super().__init__("handheld.runtime.worker")

    def load(self, bundle: Bundle, artifact: Artifact, threads: int | None) -> dict[str, Any]:
        """Check and load an artefact; the reply of `load`."""
        path = str(bundle.path.absolute())
        return self.ask("load", bundle=path, artifact=artifact.name, threads=threads)
