"""The process that runs one artefact: `python -m handheld.runtime.worker`, driven by `process.Worker`.

One JSON object a line: a request on stdin, its reply on stdout, until stdin ends. Requests, by `op`:

    load {bundle, artifact, threads}  -> {load_ns, baseline_bytes, runtime_version, threads}
    run                               -> {latency_ns, first_frame_ns}
                                                              one run on the golden inputs of the first shape; a
                                                              streamed artefact's frames are thrown away as they
                                                              come, for others first_frame_ns is null
    compare                           -> {outputs: [...]}     one run per shape against the golden outputs;
                                                              each the fields of `profile_record.Parity`
    memory                            -> {peak_bytes}         highest since just before the load

A request that fails replies {error, kind}, where kind is the class of the error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, TextIO

from . import host
from .bundle import read_bundle
from .parity import compare
from .session import SESSIONS, Session, load_session
from .streaming import StreamSession


class _Runner:
    """The state between requests: golden inputs and the loaded session."""

    _session: Session | StreamSession

    def load(self, bundle: str, artifact: str, threads: int | None) -> dict[str, Any]:
        opened = read_bundle(bundle)
        entry = opened.artifact(artifact)
        # All that is not loading the model comes first: hashing, the golden inputs, importing the runtime.
        opened.check(entry)
        self._bundle = opened
        self._inputs, _ = opened.golden()
        version = SESSIONS[entry.runtime].library_version()
        host.forget_peak_rss()
        baseline = host.rss_bytes()
        start = time.perf_counter_ns()
        self._session = load_session(opened, entry, threads)
        return {
            "load_ns": time.perf_counter_ns() - start,
            "baseline_bytes": baseline,
            "runtime_version": version,
            "threads": self._session.threads,
        }

    def run(self) -> dict[str, Any]:
        first = None
        start = time.perf_counter_ns()
        if isinstance(self._session, StreamSession):
            (latents,) = self._inputs.values()
            for _ in self._session.stream(latents):
                first = first or time.perf_counter_ns() - start
        else:
            self._session.run(self._inputs)
        return {"latency_ns": time.perf_counter_ns() - start, "first_frame_ns": first}

    def compare(self) -> dict[str, Any]:
        return {
            "outputs": [
                asdict(compare(spec, method, results[spec.name], outputs[spec.name]))
                for method in self._bundle.shapes
                for inputs, outputs in [self._bundle.golden(method)]
                for results in [self._session.run(inputs)]
                for spec in self._session.outputs
            ]
        }

    def memory(self) -> dict[str, Any]:
        return {"peak_bytes": host.peak_rss_bytes()}


def serve(requests: Iterable[str], replies: TextIO) -> None:
    """Answer requests until they end."""
    runner = _Runner()
    operations: dict[str, Callable[..., dict[str, Any]]]
    operations = {"load": runner.load, "run": runner.run, "compare": runner.compare, "memory": runner.memory}
    for line in requests:
        request = json.loads(line)
        try:
            reply = operations[request.pop("op")](**request)
        except Exception as error:  # all that can go wrong here is news for the parent, which outlives us
            reply = {"error": str(error), "kind": type(error).__name__}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> None:
    # Native libraries print to descriptor 1: keep the real one for replies and send theirs to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
