"""What each mode loses, and what it reads: the engine over a text, with the real selector in the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...errors import RuntimeFailure
from ..engine import Mode, Model, Pack
from .options import model_options


@dataclass(frozen=True)
class ModeQuality:
    """One mode over the text.

    perplexity: of the text's tokens, each predicted from those before it in its piece. agreement: of its likeliest
    tokens, the share that exact mode finds likeliest too. computed_share: of all neurons, those that were computed.
    """

    mode: Mode
    perplexity: float
    agreement: float
    bytes_read_per_token: float
    computed_share: float
    hit_rate: float


def quality(
    pack: Pack,
    tokens: Sequence[int],
    budget_bytes: int | None = None,
    piece_tokens: int = 256,
    compute_threads: int = 2,
    miss_weight: float | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[ModeQuality]:
    """Run a text through dense and exact mode, and selected mode where the pack has a selector, each within
    the budget. The text is cut into pieces of `piece_tokens`, each without the others' context; what is resident
    stays from one to the next.

    Raises RuntimeFailure for a text that is shorter than a piece, FlashError as the engine does.
    """
    pieces = [tokens[at : at + piece_tokens] for at in range(0, len(tokens) - piece_tokens + 1, piece_tokens)]
    if not pieces or piece_tokens < 2:
        raise RuntimeFailure(
            f"The text has {len(tokens)} tokens, and one piece is {piece_tokens}. Give more text or smaller pieces."
        )
    modes: list[Mode] = ["exact", "dense", *(["selected"] if pack.info.selector else [])]  # type: ignore[list-item]
    likeliest: dict[Mode, np.ndarray] = {}
    results = {}
    for index, mode in enumerate(modes):
        model = pack.model(model_options(pack, budget_bytes, mode, piece_tokens, compute_threads, miss_weight))
        losses: list[float] = []
        found: list[int] = []
        for done, piece in enumerate(pieces):
            progress(index * len(pieces) + done, len(modes) * len(pieces), mode)
            model.truncate(0)
            for loss, best in _predictions(model, piece):
                losses.append(loss)
                found.append(best)
        likeliest[mode] = np.array(found)
        stats = model.stats().session
        decoded = len(losses)
        neurons = decoded * pack.info.layers * pack.info.d_ff
        results[mode] = ModeQuality(
            mode=mode,
            perplexity=float(np.exp(np.mean(losses))),
            agreement=float((likeliest[mode] == likeliest["exact"]).mean()),
            bytes_read_per_token=stats.bytes_read / decoded,
            computed_share=stats.neurons_computed / neurons,
            hit_rate=stats.cache_hits / max(1, stats.neurons_selected),
        )
    return [results[mode] for mode in ("dense", "exact", "selected") if mode in results]


def _predictions(model: Model, piece: Sequence[int]) -> Iterator[tuple[float, int]]:
    """(negative log-likelihood of the next token, likeliest token) for each token but the last. One call a token,
    as when generating: prompts are decoded in blocks, which read less for each of their tokens."""
    for token, following in pairwise(piece):
        logits = model.decode([token]).astype(np.float64)
        largest = logits.max()
        yield float(largest + np.log(np.exp(logits - largest).sum()) - logits[following]), int(logits.argmax())
