"""A trace played under another device, budget, window or policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import RuntimeFailure
from .cost import TokenCost, Traffic, token_cost
from .device import Device
from .policies import POLICIES
from .trace import Trace, TraceShape

# As the engine's table counts a row: its pointer, position and age beside the bundle.
_ROW_BOOKKEEPING_BYTES = 20


@dataclass(frozen=True)
class ReplayOptions:
    """As the engine's session options of the same names. budget_bytes covers the trace's fixed bytes too."""

    budget_bytes: int
    policy: str = "window"
    window_tokens: int = 5
    threads: int = 32
    bundling: bool = True
    merge_gap_bytes: int = 8 * 1024
    chunk_bytes: int = 128 * 1024


@dataclass(frozen=True)
class ReplayResult:
    """Means per token over the tokens after the warm-up: an estimate, not a measurement.

    dense_io_s: reading every feed-forward weight each token, for comparison. hit_rate: of the needed neurons, those
    that were resident.
    """

    cost: TokenCost
    bytes_read: float
    reads: float
    hit_rate: float
    resident_share: float
    dense_io_s: float


def replay(trace: Trace, device: Device, options: ReplayOptions, warmup_tokens: int = 8) -> ReplayResult:
    """What the trace would cost per token. Raises RuntimeFailure for a budget below the pack's fixed bytes, an
    unknown policy, and a trace that is not longer than the warm-up."""
    rows = _rows_per_layer(trace.shape, options.budget_bytes)
    if options.policy not in POLICIES:
        raise RuntimeFailure(f'There is no policy "{options.policy}": use one of {", ".join(POLICIES)}.')
    if trace.tokens <= warmup_tokens:
        raise RuntimeFailure(
            f"The trace has {trace.tokens} tokens, and the first {warmup_tokens} are warm-up. Record more."
        )
    tables = [
        POLICIES[options.policy](rows, trace.shape.d_ff, options.window_tokens) for _ in range(trace.shape.layers)
    ]
    costs: list[TokenCost] = []
    totals = dict.fromkeys(("bytes", "reads", "needed", "hits", "resident"), 0)
    for index in range(trace.tokens):
        cost = token_cost(device, Traffic([], 0, trace.shape.always_bytes))
        for table, needed in zip(tables, trace.token(index), strict=True):
            missing, kept, evicted = table.step(needed)
            sizes = read_sizes(trace.shape, missing, options, device.read_alignment_bytes)
            computed = len(np.union1d(np.flatnonzero(table.resident), needed))
            bundle = trace.shape.bundle_bytes
            traffic = Traffic(sizes, (kept + evicted) * bundle, computed * bundle)
            cost += token_cost(device, traffic, options.threads)
            if index >= warmup_tokens:
                totals["bytes"] += sum(sizes)
                totals["reads"] += len(sizes)
                totals["needed"] += len(needed)
                totals["hits"] += len(needed) - len(missing)
                totals["resident"] += int(table.resident.sum())
        if index >= warmup_tokens:
            costs.append(cost)
    tokens = len(costs)
    return ReplayResult(
        cost=_mean(costs),
        bytes_read=totals["bytes"] / tokens,
        reads=totals["reads"] / tokens,
        hit_rate=totals["hits"] / max(1, totals["needed"]),
        resident_share=totals["resident"] / (tokens * trace.shape.layers * trace.shape.d_ff),
        dense_io_s=_dense_io_s(trace.shape, device, options),
    )


def read_sizes(shape: TraceShape, positions: np.ndarray, options: ReplayOptions, alignment: int) -> list[int]:
    """Bytes of each read that fetches these positions, ascending: neighbours joined, ends aligned."""
    if not len(positions):
        return []
    starts = shape.offset(positions)
    if options.bundling:
        lengths = np.full(len(starts), shape.bundle_bytes)
    else:
        part = shape.bundle_bytes // shape.parts
        starts = np.concatenate([starts + part * i for i in range(shape.parts)])
        order = np.argsort(starts)
        starts, lengths = starts[order], np.full(len(starts), part)
    starts, ends = starts // alignment * alignment, -(-(starts + lengths) // alignment) * alignment
    sizes: list[int] = []
    first, last = int(starts[0]), int(ends[0])
    gap = options.merge_gap_bytes if options.bundling else -1
    for start, end in zip(starts[1:].tolist(), ends[1:].tolist(), strict=True):
        if start - last <= gap and end - first <= options.chunk_bytes:
            last = end
        else:
            sizes.append(last - first)
            first, last = start, end
    return [*sizes, last - first]


def _dense_io_s(shape: TraceShape, device: Device, options: ReplayOptions) -> float:
    layer_bytes = -(-shape.d_ff // shape.bundles_per_group) * shape.group_bytes
    sizes = [options.chunk_bytes] * (layer_bytes // options.chunk_bytes)
    if rest := layer_bytes % options.chunk_bytes:
        sizes.append(rest)
    return shape.layers * token_cost(device, Traffic(sizes), options.threads).io_s


def _rows_per_layer(shape: TraceShape, budget_bytes: int) -> int:
    if budget_bytes < shape.fixed_bytes:
        raise RuntimeFailure(
            f"The budget is {budget_bytes} bytes; this pack holds {shape.fixed_bytes} beside feed-forward weights. "
            "Give at least that."
        )
    row_bytes = shape.bundle_bytes + _ROW_BOOKKEEPING_BYTES
    return min(shape.d_ff, (budget_bytes - shape.fixed_bytes) // (row_bytes * shape.layers))


def _mean(costs: list[TokenCost]) -> TokenCost:
    total = costs[0]
    for cost in costs[1:]:
        total += cost
    n = len(costs)
    return TokenCost(
        total.io_s / n,
        None if total.memory_s is None else total.memory_s / n,
        None if total.compute_s is None else total.compute_s / n,
    )
