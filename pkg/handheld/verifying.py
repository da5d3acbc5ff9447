"""`handheld.verify`: whether a bundle's artefacts compute what the model does, and where one leaves it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from handheld.runtime.bundle import Bundle, read_bundle
from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.verify import Verdict
from handheld.runtime.verify import verify as replayed


def verify(bundle: Bundle | str | Path, *, only: Collection[str] | None = None) -> list[Verdict]:
    """Replay a bundle's golden tensors through its artefacts.

    They run on their runtimes where these are here. Core ML programs are elsewhere evaluated by the reference
    evaluator, on the CPU.

    Args:
        bundle: the bundle, or its folder.
        only: names of the artefacts to verify; None is all.

    Returns:
        One verdict an artefact, in the manifest's order; `not verified` where neither a runtime nor the evaluator
        is here, with the reason.

    Raises BundleError for a bundle that is not sound, and a name in `only` that it does not have.
    """
    bundle = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    verdicts = replayed(bundle, only=only)
    if all(verdict.status != "not verified" for verdict in verdicts):
        return verdicts

    from handheld.convert.coreml.evaluator import with_reference

    return with_reference(bundle, verdicts)


def divergence(bundle: Bundle, verdict: Verdict) -> str:
    """The op at which an artefact leaves its model, as a sentence, from the bundle's source opened again.

    Empty for artefacts whose ops cannot be followed; where the source cannot be opened, the sentence says why.
    """
    from handheld.convert import TARGETS, ExportError
    from handheld.convert.diagnose import RUNTIMES, first_divergence
    from handheld.distill import DistillError
    from handheld.models import ModelError
    from handheld.sources import reopened

    artifact, provenance = verdict.artifact, bundle.manifest.provenance
    if artifact.runtime not in RUNTIMES or artifact.stream is not None or artifact.target not in TARGETS:
        return ""
    try:
        opened = reopened(provenance)
        if opened is None:
            return "No op is named: the manifest does not say which source the bundle was exported from."
        return first_divergence(bundle, artifact, TARGETS[artifact.target], opened.model)
    except (ExportError, ModelError, DistillError, RuntimeFailure, OSError) as error:
        return f"No op is named: {error}"
