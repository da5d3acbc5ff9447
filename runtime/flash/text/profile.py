"""What decoding costs on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...host import describe_host
from ..engine import Model, ModelOptions, Pack


@dataclass(frozen=True)
class DecodeProfile:
    """`tokens` generated greedily after a prompt.

    prompt_ns: from the call to the first token, of a model that has decoded nothing before. All else is of the
    tokens after that one. hit_rate: of the neurons that were needed, those that were in memory by then, prefetched
    ones included. shares of token_ns, which add up to one: waiting for reads, arithmetic of the feed-forward
    layers, selector, attention (with norms and embedding), head, and the engine's own work.
    """

    mode: str
    budget_bytes: int
    held_peak_bytes: int
    prompt_tokens: int
    prompt_ns: int
    tokens: int
    token_ns: tuple[int, ...]
    bytes_read_per_token: float
    reads_per_token: float
    hit_rate: float
    shares: dict[str, float]

    @property
    def tokens_per_s(self) -> float:
        return self.tokens * 1e9 / sum(self.token_ns)

    def to_json(self) -> str:
        content = {"format": "handheld.flash.decode-profile", "format_version": 1, **asdict(self)}
        content["tokens_per_s"] = self.tokens_per_s
        content["host"] = asdict(describe_host())
        return json.dumps(content, indent=2) + "\n"


def profile_decoding(pack: Pack, options: ModelOptions, prompt: Sequence[int], tokens: int) -> DecodeProfile:
    """Generate `tokens` tokens after a prompt; a token that ends the text does not end the measurement.

    Raises FlashError as the engine does, for a budget below the floor or a prompt that leaves too little context.
    """
    model = pack.model(options)
    started = time.perf_counter_ns()
    (last,) = model.generate(prompt, 1)
    prompt_ns = time.perf_counter_ns() - started
    before = _counters(model)
    token_ns = []
    for _ in range(tokens):
        started = time.perf_counter_ns()
        (last,) = model.generate([last], 1)
        token_ns.append(time.perf_counter_ns() - started)
    after = _counters(model)
    spent = {name: after[name] - before[name] for name in after}
    total = max(1, spent["total_ns"])
    return DecodeProfile(
        mode=options.mode,
        budget_bytes=options.session.budget_bytes,
        held_peak_bytes=model.stats().session.held_peak_bytes,
        prompt_tokens=len(prompt),
        prompt_ns=prompt_ns,
        tokens=tokens,
        token_ns=tuple(token_ns),
        bytes_read_per_token=spent["bytes_read"] / tokens,
        reads_per_token=spent["reads"] / tokens,
        hit_rate=spent["cache_hits"] / max(1, spent["neurons_selected"]),
        shares={
            "reading": spent["wait_ns"] / total,
            "feed_forward": spent["compute_ns"] / total,
            "selector": spent["select_ns"] / total,
            "attention": spent["attention_ns"] / total,
            "head": spent["head_ns"] / total,
            "engine": spent["overhead_ns"] / total,
        },
    )


def _counters(model: Model) -> dict[str, int]:
    stats: Any = model.stats()
    own = ("total_ns", "attention_ns", "head_ns", "overhead_ns")
    session = (
        "bytes_read",
        "reads",
        "cache_hits",
        "neurons_selected",
        "neurons_computed",
        "wait_ns",
        "compute_ns",
        "select_ns",
    )
    return {name: getattr(stats, name) for name in own} | {name: getattr(stats.session, name) for name in session}
