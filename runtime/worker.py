"""The process that runs one artefact: `python -m handheld.runtime.worker`, driven by `process.Worker`.

Requests, by `op` (`serving.serve`):

    load {bundle, artifact, threads}  -> {load_ns, baseline_bytes, runtime_version, threads}
    run                               -> {latency_ns, first_frame_ns}
                                                              one run on the golden inputs of the first shape; a
                                                              streamed artefact's frames are thrown away as they
                                                              come, for others first_frame_ns is null
    compare                           -> {outputs: [...]}     one run per shape against the golden outputs;
                                                              each the fields of `profile_record.Parity`;
                                                              a streamed artefact's frames as they come
    memory                            -> {peak_bytes}         highest since just before the load
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from . import host
from .bundle import read_bundle
from .parity import compare, compare_stream
from .profile_record import Parity
from .serving import serve
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
        return {"outputs": [asdict(parity) for method in self._bundle.shapes for parity in self._compare(method)]}

    def _compare(self, method: str | None) -> list[Parity]:
        inputs, outputs = self._bundle.golden(method)
        if isinstance(self._session, StreamSession):
            (latents,), (spec,) = inputs.values(), self._session.outputs
            return [compare_stream(spec, method, self._session.stream(latents), outputs[spec.name])]
        results = self._session.run(inputs)
        return [compare(spec, method, results[spec.name], outputs[spec.name]) for spec in self._session.outputs]

    def memory(self) -> dict[str, Any]:
        return {"peak_bytes": host.peak_rss_bytes()}


def main() -> None:
    runner = _Runner()
    serve({"load": runner.load, "run": runner.run, "compare": runner.compare, "memory": runner.memory})


if __name__ == "__main__":
    main()
