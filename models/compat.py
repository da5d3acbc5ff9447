"""Whether a student can learn to decode a teacher's latents."""

from __future__ import annotations

from .errors import ModelError
from .latents import LatentSpec


def check_compatible(teacher_spec: LatentSpec, student_spec: LatentSpec) -> None:
    """Return if teacher and student share one latent space, or raise ModelError with both values of each
    disagreement (latent channels, spatial and temporal compression, frame rule)."""
    faults = teacher_spec.differences(student_spec)
    if faults:
        raise ModelError(
            "Teacher and student do not share a latent space; teacher and student have "
            + "; ".join(faults)
            + ". Choose the student preset made for this teacher, or set these fields in the student's config."
        )
