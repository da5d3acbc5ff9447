"""Statistics of samples, against what can be counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.stats import compare, percentile, summarize

SAMPLES = st.lists(st.integers(1, 10**12), min_size=1, max_size=200)


def test_a_summary_of_known_samples() -> None:
    summary = summarize([*range(1, 100), 1000])
    assert (summary.count, summary.min_ns, summary.median_ns) == (100, 1, 50)
    assert (summary.p90_ns, summary.p99_ns, summary.mean_ns) == (90, 99, 60)


@given(SAMPLES, st.floats(1, 100))
def test_a_percentile_is_the_smallest_sample_that_covers_that_share(samples: list[int], percent: float) -> None:
    value = percentile(samples, percent)
    assert value in samples
    share = percent / 100 * len(samples)
    assert sum(sample <= value for sample in samples) >= share - 1e-9
    assert sum(sample < value for sample in samples) < share + 1e-9


@given(SAMPLES)
def test_the_figures_of_a_summary_are_in_order(samples: list[int]) -> None:
    summary = summarize(samples)
    assert summary.min_ns <= summary.median_ns <= summary.p90_ns <= summary.p99_ns <= max(samples)


def test_nothing_measured_is_not_zero() -> None:
    with pytest.raises(RuntimeFailure, match="no samples"):
        summarize([])


def test_drift_that_hits_both_sides_leaves_the_paired_ratio_alone() -> None:
    drift = [1, 3, 2, 10, 1]
    speedup = compare("teacher", [300 * d for d in drift], [100 * d for d in drift])
    assert speedup.pairs == (3.0,) * 5
    assert speedup.median_of_pairs == speedup.of_medians == 3.0


def test_samples_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError):
        compare("teacher", [1, 2], [1])
