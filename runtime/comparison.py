"""Profiles side by side: which of their models are the same work, how much slower one is, and whether that is real.

**The test of the gate.** A round is a fresh process (or a fresh load on a phone), so the median run of a round is
one independent observation, while runs inside a round share its heat, its memory layout and its neighbours. Two
files are compared by the logarithms of their rounds' medians: the ratio is the quotient of their geometric means,
and its confidence bounds are those of Welch's two-sample t test, which does not need both files to vary alike. A
model counts as slower only where the lower bound of a one-sided interval lies above the limit: with a limit of 5 %,
"at least 5 % slower, with 95 % confidence". Where several models are judged, the 5 % chance of a false alarm is
divided among them (Bonferroni), so that it holds for the command as a whole.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import RuntimeFailure
from .profile_record import Measurement, Profile

FALSE_ALARM = 0.05
MIN_ROUNDS = 2


@dataclass(frozen=True)
class Named:
    """A profile and what the user calls it, such as its file name; no two of a comparison alike."""

    name: str
    profile: Profile


@dataclass(frozen=True)
class Ratio:
    """How much longer one takes than a baseline; above 1 is slower.

    Attributes:
        estimate: quotient of the geometric means of the rounds' medians.
        lower: the bound that the true ratio is above, one-sided, with the confidence that was asked for.
        upper: the bound that it is below, likewise.
    """

    estimate: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Row:
    """One model of one profile, beside the same label of the first profile.

    Attributes:
        ratio: to the baseline; None for the baseline itself, for other work, and below MIN_ROUNDS rounds.
        baseline: what it is compared with; None where the first profile has no such label of the same work.
    """

    name: str
    profile: Profile
    subject: Measurement
    baseline: Measurement | None
    ratio: Ratio | None

    @property
    def differs(self) -> tuple[str, ...]:
        """What is not as in the baseline, of what may explain a ratio; empty for other work."""
        if self.baseline is None or self.baseline is self.subject or not _same_work(self.baseline, self.subject):
            return ()
        names = ("runtime", "runtime_version", "precision", "sha256", "threads", "compute_units")
        return tuple(name for name in names if getattr(self.subject, name) != getattr(self.baseline, name))


@dataclass(frozen=True)
class Gate:
    """What the gate found, as sentences: `slower` fails it, `unjudged` is what it could say nothing about."""

    slower: tuple[str, ...]
    unjudged: tuple[str, ...]
    judged: int


def workload_of(subject: Measurement) -> str:
    """For people: `9 frames of 128x128`, or `token`."""
    if subject.unit == "token":
        return "token"
    shape = subject.output_shapes[0] if subject.output_shapes else ()
    # A profile has no layout. No decoder makes pictures four pixels wide: a last axis of 4 is RGBA.
    size = shape[:-1] if shape[-1:] == (4,) else shape
    text = f" of {size[-1]}x{size[-2]}" if len(size) >= 2 else ""
    return f"{subject.units_per_run} frame{'s' if subject.units_per_run > 1 else ''}{text}"


def compare(profiles: Sequence[Named]) -> list[Row]:
    """One row per model of each profile, in order. The first profile is the baseline.

    Models are the same where their labels are; where two profiles have one model each, those are, too.
    Ratios have two-sided 90 % bounds: 95 % for each side.

    Raises RuntimeFailure for fewer than one profile.
    """
    if not profiles:
        raise RuntimeFailure("There is nothing to compare: give at least one profile.")
    return _rows(profiles, FALSE_ALARM)


def judge(profiles: Sequence[Named], limit: float) -> Gate:
    """Whether any model of the later profiles is slower than in the first by more than a limit.

    Args:
        limit: 0.05 for 5 %.

    Raises RuntimeFailure for fewer than two profiles, and where no model can be judged.
    """
    if len(profiles) < 2:
        raise RuntimeFailure("A gate needs two profiles or more: the baseline first, then what is judged.")
    rows = [row for row in compare(profiles) if row.name != profiles[0].name]
    judged = sum(row.ratio is not None and _reason(profiles[0].profile, row) is None for row in rows)
    slower, unjudged = [], []
    for row in _rows(profiles, FALSE_ALARM / max(1, judged)):
        if row.name == profiles[0].name:
            continue
        what = f"{row.name}: {row.subject.label}"
        if row.baseline and row.baseline.samples_ns and row.subject.error:
            slower.append(f"{what} failed, and did not in {profiles[0].name}: {row.subject.error}")
        elif reason := _reason(profiles[0].profile, row):
            unjudged.append(f"{what}: {reason}")
        elif row.ratio and row.ratio.lower > 1 + limit:
            slower.append(
                f"{what} takes {row.ratio.estimate:.3f} times as long as in {profiles[0].name}, at least "
                f"{row.ratio.lower:.3f} times with the confidence asked for; the limit is {1 + limit:g}"
            )
    for other in profiles[1:]:
        found = {id(row.baseline) for row in rows if row.name == other.name}
        unjudged += [
            f"{other.name}: {subject.label} is in {profiles[0].name} only"
            for subject in profiles[0].profile.subjects
            if id(subject) not in found
        ]
    if not judged and not slower:
        raise RuntimeFailure("Nothing can be judged:\n" + "\n".join(f"  {line}" for line in unjudged))
    return Gate(tuple(slower), tuple(unjudged), judged)


def ratio_of(baseline: Measurement, subject: Measurement, chance: float = FALSE_ALARM) -> Ratio | None:
    """How much longer a model takes; each bound is wrong with this chance. None below MIN_ROUNDS rounds."""
    old, new = (
        [math.log(statistics.median(one.latency_ns)) for one in measured.rounds if one.latency_ns]
        for measured in (baseline, subject)
    )
    if min(len(old), len(new)) < MIN_ROUNDS:
        return None
    estimate = statistics.fmean(new) - statistics.fmean(old)
    parts = [statistics.variance(logs) / len(logs) for logs in (old, new)]
    spread = math.sqrt(sum(parts))
    if spread == 0:
        return Ratio(math.exp(estimate), math.exp(estimate), math.exp(estimate))
    # Welch and Satterthwaite's degrees of freedom.
    freedom = sum(parts) ** 2 / sum(part**2 / (len(logs) - 1) for part, logs in zip(parts, (old, new)))
    reach = t_quantile(1 - chance, freedom) * spread
    return Ratio(math.exp(estimate), math.exp(estimate - reach), math.exp(estimate + reach))


def t_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t distribution, for probabilities from 0.5 to below 1."""
    # With t = sqrt(freedom) * tan(angle), the density is proportional to cos(angle) ** (freedom - 1).
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _t_below(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _t_below(angle: float, freedom: float) -> float:
    angles = np.linspace(0.0, angle, 2001)
    weights = np.cos(angles) ** (freedom - 1)
    # Simpson's rule: the ends once, every other point four times, the rest twice.
    area = (weights[0] + weights[-1] + 4 * weights[1:-1:2].sum() + 2 * weights[2:-1:2].sum()) * angle / 2000 / 3
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + scale * float(area)


def _rows(profiles: Sequence[Named], chance: float) -> list[Row]:
    first = profiles[0].profile
    rows = []
    for named in profiles:
        for subject in named.profile.subjects:
            baseline = subject if named is profiles[0] else _same(first, named.profile, subject)
            comparable = baseline is not None and named is not profiles[0] and _same_work(baseline, subject)
            ratio = ratio_of(baseline, subject, chance) if baseline and comparable else None
            rows.append(Row(named.name, named.profile, subject, baseline, ratio))
    return rows


def _same(first: Profile, other: Profile, subject: Measurement) -> Measurement | None:
    if len(first.subjects) == len(other.subjects) == 1:
        return first.subjects[0]
    return next((one for one in first.subjects if one.label == subject.label), None)


def _same_work(one: Measurement, other: Measurement) -> bool:
    names = ("unit", "units_per_run", "output_shapes")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _reason(first: Profile, row: Row) -> str | None:
    """Why a row cannot be judged."""
    if row.baseline is None:
        return "the baseline has no model of this label"
    if first.device.emulated or row.profile.device.emulated:
        return "measured on an emulated device, whose times are worth nothing"
    if not _same_work(row.subject, row.baseline):
        return f"makes {workload_of(row.subject)}, the baseline makes {workload_of(row.baseline)}"
    if row.ratio is None:
        return f"judging takes at least {MIN_ROUNDS} rounds in each profile: measure with --rounds 3"
    return None
