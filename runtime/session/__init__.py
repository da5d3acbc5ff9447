"""One session class per runtime, behind one interface. Runtimes are imported when a session is opened."""

from __future__ import annotations

from dataclasses import replace

from ..bundle import Bundle
from ..errors import RuntimeMissing
from ..manifest import Artifact, Method, TensorSpec
from ..stream_plan import Segment
from ..streaming import StreamSession
from .base import Session
from .coreai import CoreAISession
from .coreml import CoreMLSession
from .et import ExecuTorchSession
from .et_delegates import CoreMLDelegateSession, VulkanDelegateSession
from .ort import OnnxRuntimeSession

SessionType = type[Session]

# By the name that `Artifact.runtime` has.
SESSIONS: dict[str, SessionType] = {
    session.runtime: session
    for session in (
        OnnxRuntimeSession,
        ExecuTorchSession,
        VulkanDelegateSession,
        CoreMLDelegateSession,
        CoreMLSession,
        CoreAISession,
    )
}

__all__ = ["SESSIONS", "Session", "SessionType", "load_session", "open_session"]


def open_session(bundle: Bundle, artifact: Artifact | str, threads: int | None = None) -> Session | StreamSession:
    """Check an artefact's hash, then load it in its runtime; close the session or use it in a `with`.

    A streamed artefact's session also runs clips of other lengths, and decodes them piece by piece.

    Args:
        artifact: the manifest's entry, or its name.
        threads: CPU threads to compute with; None leaves it to the runtime.

    Raises BundleError for an altered artefact, before it is loaded; RuntimeMissing, saying what to install;
    RuntimeFailure where the runtime refuses it.
    """
    if isinstance(artifact, str):
        artifact = bundle.artifact(artifact)
    bundle.check(artifact)
    return load_session(bundle, artifact, threads)


def load_session(bundle: Bundle, artifact: Artifact, threads: int | None = None) -> Session | StreamSession:
    """The second half of `open_session`, for who has checked the hash and measures the loading."""
    session = SESSIONS[artifact.runtime]
    if reason := session.unavailable():
        raise RuntimeMissing(f"{artifact.name} cannot run here: {reason}")
    manifest = bundle.manifest
    if artifact.stream is None:
        return session(bundle.locate(artifact.path), artifact, manifest.inputs, manifest.outputs, threads)

    def load(segment: Segment) -> Session:
        return session(
            bundle.locate(f"{artifact.path}/{segment.program}"), *_as_artifact(artifact, segment), threads
        )

    return StreamSession(artifact.stream, load, artifact, manifest.inputs, manifest.outputs)


def _as_artifact(
    artifact: Artifact, segment: Segment
) -> tuple[Artifact, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """A segment as an artefact of its own, with its inputs and outputs."""
    inputs = (segment.input, *segment.select_shapes, *segment.states)
    outputs = (segment.output, *segment.states)
    method = Method(artifact.methods[0].name, inputs, outputs)
    return (
        replace(artifact, path=f"{artifact.path}/{segment.program}", methods=(method,)),
        tuple(map(TensorSpec, segment.input_names, inputs)),
        tuple(map(TensorSpec, segment.output_names, outputs)),
    )
