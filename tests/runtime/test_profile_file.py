"""The profile format: what is read and written, what is refused, what is computed."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from handheld.runtime import profile_record as record
from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.profile_file import parse_profile, read_profile, write_profile
from handheld.runtime.profile_record import Profile

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "profiles"
BROKEN: dict[str, str] = json.loads((FIXTURES / "broken" / "expected.json").read_text())
SCHEMA = json.loads((ROOT / "runtime" / "schema" / "profile.schema.json").read_text())
NAMES = ("host", "ios", "android", "llm")


def fixture(name: str) -> Profile:
    return read_profile(FIXTURES / f"{name}.json")


def test_the_fixtures_are_the_ones_that_are_tested() -> None:
    assert {path.stem for path in FIXTURES.glob("*.json")} == set(NAMES)
    assert {path.stem for path in (FIXTURES / "broken").glob("*.json")} == {*BROKEN, "expected"}


@pytest.mark.parametrize("name", NAMES)
def test_a_fixture_is_written_as_it_was_read_and_fits_the_schema(
    name: str, schema_faults: Callable, tmp_path: Path
) -> None:
    write_profile(fixture(name), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (FIXTURES / f"{name}.json").read_bytes()
    assert schema_faults(json.loads((FIXTURES / f"{name}.json").read_text()), "profile") == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_profile_is_refused_by_the_place_of_its_fault(name: str) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        read_profile(FIXTURES / "broken" / f"{name}.json")
    assert BROKEN[name] in str(caught.value)
    assert f"{name}.json" in str(caught.value)


# What JSON Schema cannot say, and what the parser of JSON itself refuses.
BEYOND_THE_SCHEMA = {"label_twice", "bundle_that_there_is_not", "finite_without_error"}


@pytest.mark.parametrize("name", sorted(n for n, where in BROKEN.items() if where != "JSON"))
def test_schema_and_parser_refuse_the_same_files(name: str, schema_faults: Callable) -> None:
    tree = json.loads((FIXTURES / "broken" / f"{name}.json").read_text())
    assert (schema_faults(tree, "profile") == []) == (name in BEYOND_THE_SCHEMA)


def test_every_fault_is_reported_at_once() -> None:
    tree = json.loads((FIXTURES / "host.json").read_text())
    tree["device"]["cores"] = 0
    tree["subjects"][1]["rounds"][0]["latency_ns"][2] = "fast"
    with pytest.raises(RuntimeFailure) as caught:
        parse_profile(json.dumps(tree), "mine.json")
    assert "device.cores: wanted a whole number of at least 1" in str(caught.value)
    assert "subjects[1].rounds[0].latency_ns[2]" in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "picture.json").write_bytes(b"\x89PNG")
    for name, says in (("absent.json", "cannot be read"), ("picture.json", "not UTF-8")):
        with pytest.raises(RuntimeFailure, match=says):
            read_profile(tmp_path / name)


@pytest.mark.parametrize(
    ("cls", "definition"),
    [
        (record.Settings, "settings"),
        (record.Device, "device"),
        (record.BundleInfo, "bundle"),
        (record.Measurement, "subject"),
        (record.ComputeUnits, "compute_units"),
        (record.Limits, "tolerance"),
        (record.Round, "round"),
        (record.Flash, "flash"),
        (record.Conditions, "conditions"),
        (record.Parity, "parity"),
        (record.Profile, None),
    ],
)
def test_schema_and_dataclasses_have_the_same_fields(cls: type, definition: str | None) -> None:
    schema = SCHEMA["$defs"][definition] if definition else SCHEMA
    own = [field.name for field in dataclasses.fields(cls)]
    fields = own if definition else ["schema_version", *own]
    assert list(schema["properties"]) == list(schema["required"]) == fields
    assert schema["additionalProperties"] is False


def test_schema_and_parser_know_the_same_words() -> None:
    defs = SCHEMA["$defs"]
    assert defs["subject"]["properties"]["runtime"]["enum"] == list(record.RUNTIMES)
    assert set(defs["conditions"]["properties"]["thermal"]["enum"]) == {*record.THERMAL, None}
    assert defs["device"]["properties"]["platform"]["enum"] == list(record.PLATFORMS)
    assert defs["device"]["properties"]["memory_metric"]["enum"] == [*record.MEMORY_METRICS, None]


def test_statistics_come_from_the_samples() -> None:
    profile = fixture("host")
    teacher, student, failed = profile.subjects
    samples = [100, 101, 99, 100.5, 102, 101, 99.5, 100.25]
    assert [sample / 1e6 for sample in student.samples_ns] == samples
    assert student.latency.median_ns == round(statistics.median(samples) * 1e6)
    assert student.units_per_second == pytest.approx(9e9 / student.latency.median_ns)
    assert student.load_ns == (40_000_000, 41_000_000)
    assert student.peak_growth_bytes == 30_000_000  # the other round's peak is not known
    assert teacher.peak_growth_bytes == 70_000_000
    assert (failed.latency, failed.units_per_second, failed.peak_growth_bytes) == (None, None, None)
    assert failed.peak_bytes is None


def test_a_ratio_is_over_runs_made_in_turn_on_clips_of_one_size() -> None:
    profile = fixture("host")
    teacher, student, failed = profile.subjects
    speedup = profile.speedup(student)
    assert speedup.reference == "teacher, onnx"
    assert speedup.pairs[0] == 2.0
    assert len(speedup.pairs) == 8
    assert profile.speedup(teacher) is None
    assert profile.speedup(failed) is None
    other = dataclasses.replace(student, output_shapes=((1, 3, 9, 64, 64),))
    assert profile.speedup(other) is None
    apart = dataclasses.replace(profile, settings=dataclasses.replace(profile.settings, interleaved=False))
    assert apart.speedup(student) is None
    alone = dataclasses.replace(profile, subjects=(student,))
    assert alone.speedup(student) is None


def test_pairs_are_those_runs_that_both_made() -> None:
    """A subject that died early: run i still pairs with run i of its round."""
    profile = fixture("host")
    _, student, _ = profile.subjects
    cut = dataclasses.replace(student.rounds[0], latency_ns=student.rounds[0].latency_ns[:3])
    short = dataclasses.replace(student, rounds=(cut,))
    assert profile.speedup(short).pairs == profile.speedup(student).pairs[:3]


def test_parity_is_judged_on_reading() -> None:
    (ios,), (android,), (llm,) = (fixture(name).subjects for name in ("ios", "android", "llm"))
    student = fixture("host").subjects[1]
    assert student.passes is True
    assert student.parity[0].psnr_db == pytest.approx(10 * math.log10(4 / 2.5e-13))
    assert ios.passes is False  # one shape is not finite
    assert ios.parity[1].psnr_db is None
    finite = dataclasses.replace(ios, parity=ios.parity[:1])
    assert finite.passes is True
    assert dataclasses.replace(finite, tolerance=record.Limits(0.002, 40.0)).passes is False
    assert dataclasses.replace(finite, tolerance=record.Limits(None, 80.0)).passes is False
    assert android.parity[0].psnr_db == math.inf
    assert android.passes is True
    assert llm.passes is None


def test_flash_counters_per_token_ignore_what_is_unknown() -> None:
    (llm,) = fixture("llm").subjects
    assert llm.rounds[0].flash.bytes_read == 2**53 + 1
    assert llm.bytes_read_per_unit == pytest.approx((2**53 + 1) / 3)
    assert llm.cache_hit_rate is None  # nothing was selected
    hit = dataclasses.replace(
        llm.rounds[0], flash=dataclasses.replace(llm.rounds[0].flash, neurons_selected=8, cache_hits=6)
    )
    assert dataclasses.replace(llm, rounds=(hit, llm.rounds[1])).cache_hit_rate == 0.75


def test_the_scope_says_whether_a_phone_was_measured() -> None:
    assert fixture("host").scope == "measured on this host; says nothing about a phone"
    assert fixture("ios").scope == "measured on iPhone17,1"
    emulated = dataclasses.replace(fixture("android").device, emulated=True)
    assert "says nothing about a phone" in dataclasses.replace(fixture("android"), device=emulated).scope
