from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handheld.distill import schema
from handheld.distill.errors import RecipeError
from handheld.distill.schema import at_least, between


@dataclass(frozen=True)
class Inner:
    rate: Annotated[float, between(0, 1)] = 0.5
    low: int = 0
    high: int = 1

    def check(self):
        if self.low > self.high:
            yield "low", f"must be at most high ({self.high})"


@dataclass(frozen=True)
class Outer:
    name: str
    count: Annotated[int, at_least(1)] = 1
    mode: Literal["fast", "slow"] = "fast"
    on: bool = False
    pair: tuple[int, float] = (1, 2.0)
    items: tuple[Annotated[int, at_least(0)], ...] = ()
    size: Annotated[float, between(0, 1)] | str | None = None
    taps: dict[str, str] = field(default_factory=dict)
    inner: Inner = Inner()


def fault_lines(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        schema.parse(text, Outer, name="r.yaml")
    return str(caught.value).splitlines()


def test_a_whole_file_becomes_the_dataclass():
    text = """\
name: x
count: 3
mode: slow
on: yes
pair: [2, 3]
items: [1, 2, 3]
size: folder
taps: {a: b}
inner: {rate: 1e-3, low: -2}
"""
    assert schema.parse(text, Outer) == Outer(
        "x", 3, "slow", True, (2, 3.0), (1, 2, 3), "folder", {"a": "b"}, Inner(0.001, -2)
    )


def test_every_fault_is_reported_with_its_line_in_file_order():
    text = """\
name: 7
cuont: 3
mode: fats
pair: [1]
items: [1, x, -3]
inner:
  rate: 2
  low: 5
  lwo: 1
count: 0
"""
    assert fault_lines(text) == [
        "r.yaml:1: name: must be text, got 7",
        "r.yaml:2: cuont: unknown key (did you mean count?)",
        "r.yaml:3: mode: must be one of fast, slow, got 'fats' (did you mean fast?)",
        "r.yaml:4: pair: must be a list of 2 times a whole number, got a list of 1",
        "r.yaml:5: items[1]: must be a whole number, got 'x'",
        "r.yaml:5: items[2]: must be at least 0, got -3",
        "r.yaml:7: inner.rate: must be between 0 and 1, got 2.0",
        "r.yaml:9: inner.lwo: unknown key (did you mean low?)",
        "r.yaml:10: count: must be at least 1, got 0",
    ]


def test_fields_that_contradict_each_other_are_reported_beside_unknown_keys():
    assert fault_lines("name: x\ninner:\n  low: 5\n  zzz: 1\n") == [
        "r.yaml:3: inner.low: must be at most high (1)",
        "r.yaml:4: inner.zzz: unknown key (allowed: high, low, rate)",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("count: 2\n", "r.yaml:1: name: missing; must be text"),
        ("name: a\ncount: 1\nname: b\n", "r.yaml:3: name: given twice (first on line 1)"),
        ("name: a\non: 1\n", "r.yaml:2: on: must be true or false, got 1"),
        ("name: a\ncount: true\n", "r.yaml:2: count: must be a whole number, got true"),
        ("name: a\ncount: 1.0\n", "r.yaml:2: count: must be a whole number, got 1.0"),
        ("name: a\ninner: {rate: .nan}\n", "r.yaml:2: inner.rate: must be a number, got .nan"),
        ("name: a\ninner: {rate: '0.5'}\n", "r.yaml:2: inner.rate: must be a number, got '0.5'"),
        ("name: a\ninner:\n", "r.yaml:2: inner: must be a section with the keys rate, low, high, got nothing"),
        ("name: a\nsize: 3\n", "r.yaml:2: size: must be between 0 and 1, got 3.0"),
        ("name: a\nsize: [1]\n", "r.yaml:2: size: must be a number or text or null, got a list of 1"),
        ("name: a\ntaps: {b: 1}\n", "r.yaml:2: taps.b: must be text, got 1"),
        ("name: a\n? [1, 2]\n: 3\n", "r.yaml:2: a list of 2: unknown key (allowed: "),
        ("- a\n", "r.yaml:1: must be a section with the keys name, "),
        ("name: [\n", "r.yaml:2: not YAML: "),
        ("name: a\n---\nname: b\n", "r.yaml:2: not YAML: "),
        ("name: \x00\n", "r.yaml:1: not YAML: "),
        ("# nothing\n", "r.yaml:1: the file is empty"),
        ("name: !!python/object:os.system x\n", "r.yaml:1: name: must be text, got x"),
    ],
)
def test_one_fault_has_one_line(text: str, fault: str):
    (line,) = fault_lines(text)
    assert line.startswith(fault)


def test_numbers_without_a_dot_before_their_exponent_are_numbers():
    assert schema.parse("name: a\ninner: {rate: 1e-4}\n", Outer).inner.rate == 1e-4


def test_a_dataclass_built_in_python_is_checked_as_a_file_is():
    assert schema.faults(Outer("x", count=0, inner=Inner(low=3))) == [
        "count: must be at least 1, got 0",
        "inner.low: must be at most high (1)",
    ]


@given(
    st.builds(
        Outer,
        name=st.text(),
        count=st.integers(1),
        mode=st.sampled_from(["fast", "slow"]),
        on=st.booleans(),
        pair=st.tuples(st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
        items=st.lists(st.integers(0)).map(tuple),
        size=st.none() | st.floats(0, 1) | st.text(),
        taps=st.dictionaries(st.text(), st.text()),
        inner=st.builds(Inner, rate=st.floats(0, 1)),
    )
)
@example(Outer("a", size="1E1"))
@example(Outer("a", size="1_0"))
def test_what_is_written_is_read_back(outer: Outer):
    assert schema.parse(schema.to_yaml(outer), Outer) == outer


def test_differences_name_the_dotted_key_and_both_values():
    assert schema.differences(Outer("a"), Outer("a", inner=Inner(high=4))) == ["inner.high: 1 and 4"]
