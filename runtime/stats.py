"""Statistics of latency samples, whole nanoseconds in and out; and the PSNR."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import RuntimeFailure


@dataclass(frozen=True)
class Summary:
    """Of `count` samples. Percentiles are nearest-rank: each is a sample that was really measured."""

    count: int
    min_ns: int
    median_ns: int
    mean_ns: int
    p90_ns: int
    p99_ns: int


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as `reference` something is; above 1 is faster.

    Attributes:
        reference: label of what it is compared with.
        of_medians: median of the reference over median of this.
        median_of_pairs: median of `pairs`. The two runs of a pair are moments apart, so that drift of the machine
            (clock, heat, other load) changes both alike. This is the figure to quote.
        pairs: reference over this, turn by turn.
    """

    reference: str
    of_medians: float
    median_of_pairs: float
    pairs: tuple[float, ...]


def summarize(samples_ns: Sequence[int]) -> Summary:
    """Raises RuntimeFailure for no samples: nothing measured is not zero."""
    if not samples_ns:
        raise RuntimeFailure("There are no samples to summarise.")
    return Summary(
        count=len(samples_ns),
        min_ns=min(samples_ns),
        median_ns=round(statistics.median(samples_ns)),
        mean_ns=round(statistics.fmean(samples_ns)),
        p90_ns=percentile(samples_ns, 90),
        p99_ns=percentile(samples_ns, 99),
    )


def percentile(samples: Sequence[int], percent: float) -> int:
    """The smallest sample that at least `percent` % of the samples do not exceed (nearest rank)."""
    rank = max(1, math.ceil(percent / 100 * len(samples)))
    return sorted(samples)[rank - 1]


def compare(reference: str, reference_ns: Sequence[int], samples_ns: Sequence[int]) -> Speedup:
    """Compare samples taken in turn; the two sequences pair up index by index, equally long."""
    pairs = tuple(theirs / ours for theirs, ours in zip(reference_ns, samples_ns, strict=True))
    return Speedup(
        reference=reference,
        of_medians=statistics.median(reference_ns) / statistics.median(samples_ns),
        median_of_pairs=statistics.median(pairs),
        pairs=pairs,
    )


def psnr_db(mean_squared_error: float, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal signals, minus infinity for no peak at all."""
    if mean_squared_error == 0:
        return math.inf
    return 10 * math.log10(peak**2 / mean_squared_error) if peak > 0 else -math.inf
