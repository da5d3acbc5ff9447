"""What each technique of the paper is worth, end to end, with the pack's own selector in the loop."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from typing import Any

from flash_subjects import Subject

from handheld.runtime.flash import MOST, UNLIMITED, Model, ModelOptions, Pack, SessionOptions
from handheld.runtime.flash.engine import Mode
from handheld.runtime.flash.text.options import MISS_WEIGHT

NAIVE = "naive: every feed-forward weight read"
ROW_BYTES = 24  # of bookkeeping, beside a bundle in the table
SHARES = (1.0, 1.5, 2.0, 3.0)  # of what is active, selected

_OWN = ("total_ns", "attention_ns", "head_ns", "overhead_ns")
_SESSION = ("wait_ns", "busy_ns", "select_ns", "compute_ns", "table_ns", "bytes_read", "reads", "neurons_computed")


@dataclass(frozen=True)
class Variant:
    """Options beside the defaults. held: the share of the feed-forward weights that the table has room for."""

    name: str
    held: float
    model: dict[str, Any]
    session: dict[str, Any] = field(default_factory=dict)


def variants(subject: Subject, d_ff: int, active: float) -> list[Variant]:
    dense = {"mode": "dense", "read_ahead": False}
    half = {"pinned_neurons": d_ff // 2}
    selected = {"mode": "selected", "prefetch": False}
    ahead = {"mode": "selected", "prefetch": True}
    plain = {
        "window_tokens": 0,
        "bundling": False,
        "merging": False,
        "compute_resident": False,
        "io_uring": False,
        "neighbours": False,
    }
    window = {**plain, "window_tokens": 5}
    bundled = {**window, "bundling": True}
    merged = {**bundled, "merging": True}
    largest = {**merged, "window_tokens": UNLIMITED}
    pinned = {**largest, "pinned_neurons": MOST}
    whole = {**pinned, "compute_resident": True}
    ring = {**whole, "io_uring": True}
    short = {**ring, "reader_threads": 32, "chunk_bytes": 64 * 1024}
    weighed = {**short, "miss_weight": MISS_WEIGHT}
    beside = {**weighed, "neighbours": True}
    in_fp32 = {"int8_activations": False, "int8_hidden": False}
    return [
        Variant(NAIVE, 0, dense),
        Variant("half of them resident", 0.5, dense, half),
        Variant("+ selector, three reads a neuron", 0.5, selected, plain),
        Variant("+ window of 5 tokens", 0.5, selected, window),
        Variant("+ bundling", 0.5, selected, bundled),
        Variant("+ merging", 0.5, selected, merged),
        Variant("+ window as large as memory", 0.5, selected, largest),
        Variant("+ hottest neurons pinned", 0.5, selected, pinned),
        Variant("+ every resident neuron computed", 0.5, selected, whole),
        Variant("+ io_uring", 0.5, selected, ring),
        Variant("+ 32 reads under way", 0.5, selected, short),
        Variant("+ what is resident preferred", 0.5, selected, weighed),
        Variant("+ neighbours of what is read", 0.5, selected, beside),
        Variant("+ chosen before attention", 0.5, ahead, beside),
        Variant("these, both rows of all neurons scored", 0.5, ahead, {**beside, "gate_first": False}),
        Variant("these, down parts in fp32", 0.5, ahead, {**beside, "int8_hidden": False}),
        Variant("these, everything in fp32", 0.5, ahead, {**beside, **in_fp32}),
        Variant("twice as many selected as are active", 0.5, selected, {**short, "select_share": 2 * active}),
        Variant("the same, what is resident preferred", 0.5, ahead, {**beside, "select_share": 2 * active}),
        Variant("nothing left out: half resident, reading ahead", 0.5, {"mode": "dense"}, half),
        Variant("nothing left out: all resident", 1, dense, {"pinned_neurons": UNLIMITED}),
        Variant(
            "all resident, everything in fp32",
            1,
            dense,
            {"pinned_neurons": UNLIMITED, **in_fp32},
        ),
    ]


def budget_for(pack: Pack, options: ModelOptions, held: float) -> int:
    """Bytes of the floor and of table rows for a share of the feed-forward weights."""
    floor = pack.model_floor_bytes(replace(options, session=replace(options.session, pinned_neurons=0)))
    info = pack.info
    return floor + round(held * info.layers * info.d_ff) * (info.bundle_bytes + ROW_BYTES)


def open_variant(pack: Pack, variant: Variant, subject: Subject, threads: int) -> Model:
    session = SessionOptions(0, compute_threads=threads, **variant.session)
    options = ModelOptions(session, context_tokens=subject.context, **variant.model)
    budget = budget_for(pack, options, variant.held)
    return pack.model(replace(options, session=replace(session, budget_bytes=budget)))


def measure(subject: Subject, active: float, threads: int, tokens: int, warmup: int) -> list[dict[str, Any]]:
    """A row for each variant: medians over tokens, ratios those of medians. All decode the same text, in turn,
    token by token, so that a disk whose rate changes within minutes changes it for all; what keeps a window has
    decoded `warmup` tokens before.
    """
    pack = subject.open()
    d_ff = pack.info.d_ff
    chosen = variants(subject, d_ff, active)
    models = {variant.name: open_variant(pack, variant, subject, threads) for variant in chosen}
    taken: dict[str, list[dict[str, int]]] = {name: [] for name in models}
    for at, token in enumerate(subject.tokens[: tokens + warmup]):
        for variant in chosen:
            if at < warmup and variant.model["mode"] == "dense":
                continue  # keeps nothing of a token
            model = models[variant.name]
            before = _counters(model)
            model.decode([token])
            after = _counters(model)
            if at >= warmup:
                taken[variant.name].append({name: after[name] - before[name] for name in after})
    naive = statistics.median(row["total_ns"] for row in taken[NAIVE])
    rows = []
    for variant in chosen:
        median = {name: statistics.median(row[name] for row in taken[variant.name]) for name in taken[NAIVE][0]}
        stats = models[variant.name].stats().session
        rows.append(
            {
                "technique": variant.name,
                **median,
                "read_bytes_per_s": median["bytes_read"] * 1e9 / median["busy_ns"] if median["busy_ns"] else None,
                "tokens_per_s": 1e9 / median["total_ns"],
                "speed_against_naive": naive / median["total_ns"],
                "computed_share": median["neurons_computed"] / (pack.info.layers * d_ff),
                "overhead_us_per_layer": median["overhead_ns"] / pack.info.layers / 1000,
                "held_peak_bytes": stats.held_peak_bytes,
                "token_ns": [row["total_ns"] for row in taken[variant.name]],
            }
        )
    return rows


def coverage(subject: Subject, threads: int, tokens: int, warmup: int) -> list[dict[str, float | None]]:
    """What selected mode computes of the neurons that exact mode needs for the same text, those whose
    abs(h) * importance is over the threshold, by the share of neurons that the selector chooses: by that alone,
    and with what is resident when half of the neurons are, without and with preferring that (None where more are
    selected than half). Each mode decodes on its own, so what selected mode has lost in earlier layers and tokens
    counts too.
    """
    pack = subject.open()
    text = subject.tokens[: tokens + warmup]
    alone = {
        "window_tokens": 1,
        "compute_resident": False,
    }  # what is resident after a token is what that one needed

    def computed(mode: Mode, held: float, **session: Any) -> list[list[set[int]]]:
        model = open_variant(pack, Variant(mode, held, {"mode": mode}, session), subject, threads)
        sets = []
        for token in text:
            model.decode([token])
            sets.append([set(model.resident(layer).tolist()) for layer in range(pack.info.layers)])
        return sets[warmup:]

    needed = computed("exact", 1, **alone)
    active = statistics.mean(len(layer) for token in needed for layer in token) / pack.info.d_ff
    rows = []
    for factor in SHARES:
        share = min(1.0, factor * active)
        chosen = computed("selected", 1, select_share=share, **alone)
        half = {"select_share": share, "window_tokens": UNLIMITED}
        rows.append(
            {
                "active_share": active,
                "selected_share": share,
                "found": _found(needed, chosen),
                "found_with_resident": (_found(needed, computed("selected", 0.5, **half)) if share < 0.5 else None),
                "found_with_resident_preferred": (
                    _found(needed, computed("selected", 0.5, **half, miss_weight=MISS_WEIGHT))
                    if share < 0.5
                    else None
                ),
            }
        )
    return rows


def _found(needed: list[list[set[int]]], computed: list[list[set[int]]]) -> float:
    pairs = [pair for one, other in zip(needed, computed, strict=True) for pair in zip(one, other, strict=True)]
    return sum(len(a & b) for a, b in pairs) / sum(len(a) for a, _ in pairs)


def print_rows(rows: list[dict[str, Any]]) -> None:
    columns = ("I/O", "waiting", "selector", "neurons", "attention", "head", "engine", "total")
    print(f"{'':46} {'MB read':>8} {'GB/s':>5}" + "".join(f"{name:>10}" for name in columns) + "  tokens/s  speed")
    for row in rows:
        rate = f"{row['read_bytes_per_s'] / 1e9:5.2f}" if row["read_bytes_per_s"] else "    -"
        names = ("busy", "wait", "select", "compute", "attention", "head", "overhead", "total")
        times = "".join(f"{row[name + '_ns'] / 1e6:7.1f} ms" for name in names)
        print(
            f"{row['technique']:46} {row['bytes_read'] / 1e6:8.1f} {rate}{times} {row['tokens_per_s']:9.2f} "
            f"{row['speed_against_naive']:5.2f}x"
        )


def _counters(model: Model) -> dict[str, int]:
    stats = model.stats()
    return {name: getattr(stats, name) for name in _OWN} | {name: getattr(stats.session, name) for name in _SESSION}
