"""Recording which neurons a text needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ...errors import BundleError
from ..engine import ModelOptions, Pack
from ..pack import MANIFEST_NAME, RESIDENT_NAME
from ..plan import Trace, TraceRecorder, TraceShape
from .options import EVERYTHING


def record_trace(
    pack: Pack,
    options: ModelOptions,
    tokens: Sequence[int],
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Trace:
    """The neurons that each token of a text needs in the options' mode, exact or selected. Memory is not limited
    meanwhile: the whole model becomes resident."""
    needs = replace(
        options.session,
        budget_bytes=EVERYTHING,
        window_tokens=1,
        pinned_neurons=0,
        compute_resident=False,
        miss_weight=1.0,
    )
    recorder = TraceRecorder(_shape(pack, options), _orders(pack))
    model = pack.model(replace(options, session=needs, prefetch=False))
    for done, token in enumerate(tokens):
        progress(done, len(tokens), "")
        model.decode([token])
        recorder.end_token(model)
    return recorder.trace()


def _shape(pack: Pack, options: ModelOptions) -> TraceShape:
    info = pack.info
    try:
        groups = json.loads((pack.path / MANIFEST_NAME).read_text(encoding="utf-8"))["groups"]
        return TraceShape(
            layers=info.layers,
            d_ff=info.d_ff,
            bundle_bytes=int(groups["bundle_stride"]),
            bundles_per_group=int(groups["bundles_per_group"]),
            group_bytes=int(groups["group_bytes"]),
            parts=3 if info.gated else 2,
            fixed_bytes=pack.model_floor_bytes(
                replace(options, session=replace(options.session, pinned_neurons=0))
            ),
            always_bytes=pack.model_info.weights_bytes,
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{pack.path / MANIFEST_NAME} does not say how neurons are grouped: {error}.") from error


def _orders(pack: Pack) -> list[np.ndarray | None]:
    from safetensors import safe_open

    with safe_open(pack.path / RESIDENT_NAME, "np") as file:
        names = set(file.keys())
        return [
            file.get_tensor(f"flash.{layer}.order") if f"flash.{layer}.order" in names else None
            for layer in range(pack.info.layers)
        ]
