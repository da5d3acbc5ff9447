"""Comparing profiles: what is paired, the test of the gate, and the page."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from handheld.runtime.compare_page import HEADER, cells, hottest, write_page
from handheld.runtime.comparison import Named, compare, judge, ratio_of, t_quantile
from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.profile_file import read_profile
from handheld.runtime.profile_record import Conditions, Measurement, Profile

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "profiles"


@pytest.fixture
def profile() -> Profile:
    return read_profile(FIXTURES / "host.json")


def timed(subject: Measurement, medians_ns: list[int]) -> Measurement:
    """A round for each median, of three runs around it."""
    rounds = [
        dataclasses.replace(subject.rounds[0], latency_ns=(ns - ns // 50, ns, ns + ns // 25)) for ns in medians_ns
    ]
    return dataclasses.replace(subject, rounds=tuple(rounds), error=None)


def with_student(profile: Profile, medians_ns: list[int], **changes: object) -> Profile:
    student = dataclasses.replace(timed(profile.subjects[1], medians_ns), **changes)
    return dataclasses.replace(profile, subjects=(student,))


BASE = [100_000_000, 101_000_000, 99_000_000, 100_500_000]


@pytest.mark.parametrize(
    ("probability", "freedom", "tabled"),
    [(0.95, 4, 2.1318), (0.975, 10, 2.2281), (0.95, 1, 6.3138), (0.99, 3, 4.5407), (0.995, 200, 2.6006)],
)
def test_the_t_quantile_is_that_of_the_tables(probability: float, freedom: float, tabled: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(tabled, abs=2e-4)


def test_a_ratio_is_that_of_geometric_means_with_welchs_bounds(profile: Profile) -> None:
    """Against the textbook formula, worked out here with tabled quantiles for four degrees of freedom."""
    old, new = (timed(profile.subjects[1], [10 * m for m in ms]) for ms in ([100, 110, 121], [200, 220, 242]))
    ratio = ratio_of(old, new)
    reach = 2.1318 * np.log(1.1) * np.sqrt(2 / 3)
    assert ratio.estimate == pytest.approx(2.0)
    assert ratio.lower == pytest.approx(2 * np.exp(-reach), rel=1e-4)
    assert ratio.upper == pytest.approx(2 * np.exp(reach), rel=1e-4)
    same = ratio_of(old, old)
    assert same.lower < 1 < same.upper
    still = timed(profile.subjects[1], [1000, 1000])
    assert ratio_of(still, still) == ratio_of(still, still).__class__(1.0, 1.0, 1.0)


def test_the_gate_is_wrong_as_rarely_as_it_says(profile: Profile) -> None:
    """At the limit exactly, one in twenty is an alarm; well above it, nearly all are."""
    generator = np.random.default_rng(0)
    subject = profile.subjects[1]

    def alarms(true_ratio: float, trials: int) -> float:
        found = 0
        for _ in range(trials):
            old, new = generator.normal(0, 0.03, 5), generator.normal(np.log(true_ratio), 0.06, 5)
            sides = [timed(subject, [round(1e8 * np.exp(x)) for x in logs]) for logs in (old, new)]
            found += ratio_of(*sides).lower > 1.05
        return found / trials

    assert 0.025 < alarms(1.05, 600) < 0.08
    assert alarms(1.0, 300) < 0.025
    assert alarms(1.3, 100) > 0.95


def test_slower_fails_and_noise_does_not(profile: Profile) -> None:
    base = Named("a.json", with_student(profile, BASE))
    noisy = Named("b.json", with_student(profile, [m + 2_000_000 for m in BASE]))
    slow = Named("c.json", with_student(profile, [m * 6 // 5 for m in BASE]))
    assert judge([base, noisy], 0.05).slower == ()
    gate = judge([base, noisy, slow], 0.05)
    assert gate.judged == 2
    (line,) = gate.slower
    assert line.startswith("c.json: student, onnx takes 1.200 times as long as in a.json")
    assert judge([slow, base], 0.0).slower == ()


def test_more_models_judged_need_stronger_evidence(profile: Profile) -> None:
    """Bonferroni: a difference that fails alone passes among many."""
    base, slow = [100_000_000, 104_000_000], [112_000_000, 118_000_000]
    student = profile.subjects[1]

    def with_copies(medians: list[int], others: int) -> Profile:
        same = [dataclasses.replace(timed(student, base), label=f"other {i}") for i in range(others)]
        return dataclasses.replace(profile, subjects=(timed(student, medians), *same))

    def slower(others: int) -> int:
        sides = [Named("a", with_copies(base, others)), Named("b", with_copies(slow, others))]
        return len(judge(sides, 0.0).slower)

    assert slower(0) == 1
    assert slower(19) == 0


def test_what_failed_where_the_baseline_did_not_fails_the_gate(profile: Profile) -> None:
    broken = dataclasses.replace(profile.subjects[1], rounds=(), error="out of memory")
    after = dataclasses.replace(profile, subjects=(broken,))
    gate = judge([Named("a", with_student(profile, BASE)), Named("b", after)], 0.05)
    assert gate.slower == ("b: student, onnx failed, and did not in a: out of memory",)


def test_what_cannot_be_judged_is_named_and_nothing_judged_is_an_error(profile: Profile) -> None:
    base = Named("a", profile)
    (ios,) = read_profile(FIXTURES / "ios.json").subjects
    other = dataclasses.replace(profile, subjects=(profile.subjects[0], timed(profile.subjects[1], BASE[:1]), ios))
    gate = judge([base, Named("b", other)], 0.05)
    assert gate.judged == 1
    assert [line.partition(": ")[2].partition(":")[0] for line in gate.unjudged] == [
        "student, onnx",
        "ios, cpuAndNeuralEngine",
        "student, android is in a only",
    ]
    assert "2 rounds" in gate.unjudged[0]
    emulated = dataclasses.replace(profile, device=dataclasses.replace(profile.device, emulated=True))
    with pytest.raises(RuntimeFailure, match="emulated device"):
        judge([base, Named("b", emulated)], 0.05)
    with pytest.raises(RuntimeFailure, match="two profiles or more"):
        judge([base], 0.05)


def test_other_work_gets_no_ratio(profile: Profile) -> None:
    base = Named("a", with_student(profile, BASE))
    larger = with_student(profile, BASE, output_shapes=((1, 3, 9, 256, 256),))
    first, second = compare([base, Named("b", larger)])
    assert (first.ratio, second.ratio) == (None, None)
    assert second.differs == ()
    with pytest.raises(RuntimeFailure, match="makes 9 frames of 256x256, the baseline makes 9 frames of 128x128"):
        judge([base, Named("b", larger)], 0.05)


def test_what_differs_beside_time_is_named(profile: Profile) -> None:
    base = Named("a", with_student(profile, BASE))
    other = with_student(profile, BASE, label="mine", precision="int8", sha256="cd" * 32)
    _, row = compare([base, Named("b", other)])  # one model each: the label does not matter
    assert row.differs == ("precision", "sha256")
    assert row.ratio.estimate == pytest.approx(1.0)


def test_the_page_holds_every_model_and_is_well_formed(profile: Profile, tmp_path: Path) -> None:
    named = [Named(name, read_profile(FIXTURES / f"{name}.json")) for name in ("host", "ios", "android", "llm")]
    rows = compare(named)
    write_page(rows, judge([named[0], Named("again", profile)], 0.05), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    root = ET.fromstring(text.removeprefix("<!DOCTYPE html>"))
    table = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    assert table == [list(HEADER), *(cells(row) for row in rows)]
    shown = "".join(root.itertext())
    assert "2 judged, 0 slower or failed" in shown
    assert "llm: flash, 2 GB" in shown
    assert "says nothing about a phone" in shown


def test_the_worst_thermal_state_is_shown_in_the_systems_word(profile: Profile) -> None:
    (ios,), (android,), (llm,) = (
        read_profile(FIXTURES / f"{name}.json").subjects for name in ("ios", "android", "llm")
    )
    assert (hottest(ios), hottest(android), hottest(llm)) == ("serious", "moderate", "critical")
    assert hottest(profile.subjects[1]) is None
    hot = dataclasses.replace(android.rounds[0], after=Conditions(thermal="critical"))
    assert hottest(dataclasses.replace(android, rounds=(hot,))) == "critical"
