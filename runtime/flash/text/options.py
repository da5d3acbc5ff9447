"""Options of a model that make the most of a memory limit."""

from __future__ import annotations

from dataclasses import replace

from ..engine import MOST, UNLIMITED, Mode, ModelOptions, Pack, SessionOptions

# More than any model needs: all of it becomes resident.
EVERYTHING = 1 << 46

# SmolLM2-135M at half of its neurons makes 324 reads a token, at a perplexity of 12.6; with 1 it makes 908, at 11.6
# (exact mode: 12.2). docs/llm.md has more.
MISS_WEIGHT = 0.35

# Selected mode reads a neuron or a few at a time: more reads under way, in buffers of the same 2 MiB.
_SHORT_READS, _SHORT_READ_BYTES = 32, 64 * 1024


def model_options(
    pack: Pack,
    budget_bytes: int | None = None,
    mode: Mode | None = None,
    context_tokens: int = 512,
    compute_threads: int = 2,
    miss_weight: float | None = None,
) -> ModelOptions:
    """Options for a pack. budget_bytes: of all that is held; None: what the whole model takes. mode: None is
    selected where the pack has a selector, else exact.

    In selected mode most rows of the table hold the hottest neurons, which the selector then need not look at,
    and the rest what was needed last. A neuron that has to be read counts `miss_weight` of its score (None:
    MISS_WEIGHT). The other two need every neuron in each token, and pin all that fit.
    """
    chosen: Mode = mode or ("selected" if pack.info.selector else "exact")
    session = SessionOptions(budget_bytes or EVERYTHING, compute_threads=compute_threads)
    if chosen == "selected":
        session = replace(
            session,
            window_tokens=UNLIMITED,
            pinned_neurons=MOST,
            miss_weight=MISS_WEIGHT if miss_weight is None else miss_weight,
            reader_threads=_SHORT_READS,
            chunk_bytes=_SHORT_READ_BYTES,
        )
    else:
        session = replace(session, pinned_neurons=UNLIMITED)
    return ModelOptions(
        session,
        chosen,
        context_tokens=min(context_tokens, pack.model_info.max_positions),
    )
