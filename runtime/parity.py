"""How far a result is from its golden tensor."""

from __future__ import annotations

import numpy as np

from .manifest import TensorSpec
from .profile_record import Parity


def compare(spec: TensorSpec, method: str | None, result: np.ndarray, golden: np.ndarray) -> Parity:
    """Compare one output, of the golden tensor's shape.

    Args:
        method: as in the golden file; None is the first shape.
    """
    if not np.isfinite(result).all():
        return Parity(spec.name, method, False, None, None, None)
    wanted = golden.astype(np.float64)
    difference = np.abs(result - wanted)
    low, high = spec.range or (wanted.min(), wanted.max())
    return Parity(
        output=spec.name,
        method=method,
        finite=True,
        max_abs_error=float(difference.max()),
        mean_squared_error=float(np.mean(difference**2)),
        peak=float(high - low),
    )
