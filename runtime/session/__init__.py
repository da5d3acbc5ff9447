"""One session class per runtime, behind one interface. Runtimes are imported when a session is opened."""

from __future__ import annotations

from ..bundle import Bundle
from ..errors import RuntimeMissing
from ..manifest import Artifact
from .base import Session
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
    )
}

__all__ = ["SESSIONS", "Session", "SessionType", "load_session", "open_session"]


def open_session(bundle: Bundle, artifact: Artifact | str, threads: int | None = None) -> Session:
    """Check an artefact's hash, then load it in its runtime; close the session or use it in a `with`.

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


def load_session(bundle: Bundle, artifact: Artifact, threads: int | None = None) -> Session:
    """The second half of `open_session`, for who has checked the hash and measures the loading."""
    session = SESSIONS[artifact.runtime]
    if reason := session.unavailable():
        raise RuntimeMissing(f"{artifact.name} cannot run here: {reason}")
    return session(bundle.locate(artifact.path), artifact, bundle.manifest.inputs, bundle.manifest.outputs, threads)
