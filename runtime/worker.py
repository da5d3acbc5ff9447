"""The process that runs one artefact: `python -m handheld.runtime.worker`, driven by `process.Worker`.

One JSON object a line: a request on stdin, its reply on stdout, until stdin ends. Requests, by `op`:

    load {bundle, artifact, threads}  -> {load_ns, baseline_rss_bytes, runtime_version, threads}
    run                               -> {latency_ns}         one run on the golden inputs of the first shape
    compare                           -> {finite: false} or {finite: true, max_abs_error, psnr_db}
                                         one run per shape against the golden outputs: the worst of them
    memory                            -> {peak_rss_bytes}     highest since just before the load

A request that fails replies {error, kind}, where kind is the class of the error.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import numpy as np

from . import host
from .bundle import read_bundle
from .session import SESSIONS, Session, load_session
from .streaming import StreamSession


class _Runner:
    """The state between requests: golden tensors and the loaded session."""

    _session: Session | StreamSession

    def load(self, bundle: str, artifact: str, threads: int | None) -> dict[str, Any]:
        opened = read_bundle(bundle)
        entry = opened.artifact(artifact)
        # All that is not loading the model comes first: hashing, the golden tensors, importing the runtime.
        opened.check(entry)
        self._golden = [opened.golden(shape) for shape in opened.shapes]
        version = SESSIONS[entry.runtime].library_version()
        host.forget_peak_rss()
        baseline = host.rss_bytes()
        start = time.perf_counter_ns()
        self._session = load_session(opened, entry, threads)
        return {
            "load_ns": time.perf_counter_ns() - start,
            "baseline_rss_bytes": baseline,
            "runtime_version": version,
            "threads": self._session.threads,
        }

    def run(self) -> dict[str, Any]:
        inputs, _ = self._golden[0]
        start = time.perf_counter_ns()
        self._session.run(inputs)
        return {"latency_ns": time.perf_counter_ns() - start}

    def compare(self) -> dict[str, Any]:
        errors, psnrs = [], []
        for inputs, outputs in self._golden:
            results = self._session.run(inputs)
            if not all(np.isfinite(array).all() for array in results.values()):
                return {"finite": False}
            for spec in self._session.outputs:
                wanted = outputs[spec.name].astype(np.float64)
                difference = np.abs(results[spec.name] - wanted)
                low, high = spec.range or (wanted.min(), wanted.max())
                errors.append(float(difference.max()))
                psnrs.append(psnr_db(float(np.mean(difference**2)), peak=float(high - low)))
        return {"finite": True, "max_abs_error": max(errors), "psnr_db": min(psnrs)}

    def memory(self) -> dict[str, Any]:
        return {"peak_rss_bytes": host.peak_rss_bytes()}


def psnr_db(mean_squared_error: float, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal signals, minus infinity for no peak at all."""
    if mean_squared_error == 0:
        return math.inf
    return 10 * math.log10(peak**2 / mean_squared_error) if peak > 0 else -math.inf


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
