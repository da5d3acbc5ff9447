"""Strict parsing of JSON into frozen dataclasses, every fault reported at once.

A check takes (value, where, faults) and returns the parsed value. Where it finds a fault, it appends one line to
`faults` and returns a placeholder. Nobody reads the placeholder: the caller raises when `faults` is not empty.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

Check = Callable[[Any, str, list[str]], Any]


def load_json(text: str) -> Any:
    """Parse JSON. Raises ValueError for text that readers in other languages would read otherwise or not at all.

    That is: duplicate keys, NaN, infinity, numbers too large for a float, and text with half of a surrogate pair.
    """
    try:
        tree = json.loads(
            text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite_float
        )
        if "\\u" in text:
            json.dumps(tree, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return tree


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"keys given twice: {', '.join(name for name in counts if counts[name] > 1)}")
    return tree


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is too large a number")
    return value


def text(pattern: str | None = None, wanted: str = "text that is not empty", empty: bool = False) -> Check:
    """A string; with `pattern`, one that matches it wholly."""

    def check(value: Any, where: str, faults: list[str]) -> Any:
        good = isinstance(value, str) and (empty or value) and (not pattern or re.fullmatch(pattern, value))
        return value if good else _fault(value, where, "text" if empty else wanted, faults)

    return check


def one_of(*allowed: str) -> Check:
    def check(value: Any, where: str, faults: list[str]) -> Any:
        good = isinstance(value, str) and value in allowed
        return value if good else _fault(value, where, " or ".join(f'"{a}"' for a in allowed), faults)

    return check


def boolean(value: Any, where: str, faults: list[str]) -> Any:
    return value if isinstance(value, bool) else _fault(value, where, "true or false", faults)


def integer(least: int, most: int = 2**63 - 1) -> Check:
    """A whole number; by default one that fits 64 bits, as readers in other languages keep it."""
    wanted = f"a whole number of at least {least}" + ("" if most == 2**63 - 1 else f" and at most {most}")

    def check(value: Any, where: str, faults: list[str]) -> Any:
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return value if good else _fault(value, where, wanted, faults)

    return check


def number(least: float = -math.inf) -> Check:
    wanted = "a finite number" if least == -math.inf else f"a finite number of at least {least:g}"

    def check(value: Any, where: str, faults: list[str]) -> Any:
        good = isinstance(value, int | float) and not isinstance(value, bool) and least <= value
        good = good and abs(value) <= sys.float_info.max
        return float(value) if good else _fault(value, where, wanted, faults)

    return check


def relative_path(value: Any, where: str, faults: list[str]) -> Any:
    """A path with `/` between parts that stays below the folder it is relative to."""
    wanted = "a path inside the bundle, relative, with / between parts and without '..'"
    if not isinstance(value, str) or not value.isprintable() or "\\" in value:
        return _fault(value, where, wanted, faults)
    path = PurePosixPath(value)
    good = not path.is_absolute() and ".." not in path.parts and str(path) == value != "."
    return value if good else _fault(value, where, wanted, faults)


def mapping(of: Check | None = None) -> Check:
    """An object with any keys; with `of`, every value is checked by it."""

    def check(value: Any, where: str, faults: list[str]) -> Any:
        if not isinstance(value, dict):
            return _fault(value, where, "an object", faults)
        return {key: of(item, f"{where}.{key}", faults) for key, item in value.items()} if of else value

    return check


def sequence(of: Check, least: int = 0) -> Check:
    """A list of at least `least` items, as a tuple."""

    def check(value: Any, where: str, faults: list[str]) -> Any:
        if not isinstance(value, list) or len(value) < least:
            _fault(value, where, f"a list of at least {least} items" if least else "a list", faults)
            return ()
        return tuple(of(item, f"{where}[{index}]", faults) for index, item in enumerate(value))

    return check


def nullable(of: Check) -> Check:
    def check(value: Any, where: str, faults: list[str]) -> Any:
        return None if value is None else of(value, where, faults)

    return check


def record(cls: type, checks: Mapping[str, Check], optional: Collection[str] = ()) -> Check:
    """An object with exactly the keys of `checks`, `optional` ones or not, as an instance of dataclass `cls`."""

    def check(value: Any, where: str, faults: list[str]) -> Any:
        if not isinstance(value, dict):
            return _fault(value, where, "an object", faults)
        at = f"{where}." if where else ""
        faults += [f"{at}{key}: unknown key" for key in value if key not in checks]
        faults += [f"{at}{key}: missing" for key in checks if key not in value and key not in optional]
        values = {key: of(value[key], f"{at}{key}", faults) for key, of in checks.items() if key in value}
        return cls(**values) if checks.keys() - values.keys() <= set(optional) else None

    return check


def _fault(value: Any, where: str, wanted: str, faults: list[str]) -> None:
    shown = repr(value)
    faults.append(f"{where}: wanted {wanted}, found {shown if len(shown) <= 60 else shown[:57] + '...'}")
