"""YAML to frozen dataclasses: every fault is reported at once, each with its line.

A recipe class is a frozen dataclass whose fields are `bool`, `int`, `float`, `str`, `Literal`, `X | None` and
other unions, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]` or another such dataclass. What a value must satisfy on
its own stands in its annotation (`Annotated[int, at_least(1)]`); what fields must satisfy together stands in a
method `check(self)` that yields `(key, message)` pairs.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import RecipeError

T = TypeVar("T")
_BAD = object()
_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


@dataclasses.dataclass(frozen=True)
class Must:
    """What a value must satisfy on its own: a predicate and the words for it ("at least 1")."""

    holds: Callable[[Any], bool]
    text: str


def at_least(low: float) -> Must:
    return Must(lambda value: value >= low, f"at least {low}")


def above(low: float) -> Must:
    return Must(lambda value: value > low, f"above {low}")


def between(low: float, high: float) -> Must:
    """Both ends are allowed."""
    return Must(lambda value: low <= value <= high, f"between {low} and {high}")


def parse(text: str, cls: type[T], *, name: str = "recipe.yaml") -> T:
    """Read YAML `text` into dataclass `cls`.

    Raises RecipeError with one line per fault, in the order of the file: `recipe.yaml:12: data.crop: must be ...`.
    """
    reader = _Reader()
    value = reader.read(compose(text, name), cls, "", 1)
    if reader.faults:
        lines = [f"{name}:{line}: {key + ': ' if key else ''}{text}" for line, key, text in sorted(reader.faults)]
        raise RecipeError("\n".join(lines))
    return value


def compose(text: str, name: str) -> yaml.Node:
    """The YAML tree of `text`. Raises RecipeError where it is not YAML or empty."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{name}:{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{name}:1: not YAML: {str(error).splitlines()[0]}") from None
    if node is None:
        raise RecipeError(f"{name}:1: the file is empty")
    return node


def faults(section: Any, prefix: str = "") -> list[str]:
    """Faults of a dataclass that was built in Python, as `key: message` (types are taken on trust)."""
    found = []
    for field, kind in _hints(type(section)).items():
        value, key = getattr(section, field), f"{prefix}{field}"
        if dataclasses.is_dataclass(value):
            found += faults(value, f"{key}.")
        else:
            found += [f"{key}: {message}" for message in _unmet(value, kind)]
    if not found:
        found = [f"{prefix}{field}: {message}" for field, message in _check(section)]
    return found


def to_yaml(section: Any) -> str:
    """YAML that `parse` reads back into an equal dataclass."""
    return yaml.dump(plain(section), Dumper=_Dumper, sort_keys=False, width=110)


def plain(section: Any) -> dict[str, Any]:
    """A dataclass as dicts, lists and scalars."""

    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: listed(item) for key, item in value.items()}
        return [listed(item) for item in value] if isinstance(value, tuple | list) else value

    return listed(dataclasses.asdict(section))


def differences(old: Any, new: Any) -> list[str]:
    """Each key in which two dataclasses of one class differ: `optim.lr: 0.001 and 0.002`."""
    one, two = flatten(plain(old)), flatten(plain(new))
    keys = [key for key in {**one, **two} if one.get(key, _BAD) != two.get(key, _BAD)]
    return [f"{key}: {one.get(key, 'absent')} and {two.get(key, 'absent')}" for key in keys]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """` (did you mean x?)` where something allowed is close, else the list of what is allowed."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1)
    return f" (did you mean {near[0]}?)" if near else f" (allowed: {', '.join(names)})"


class _Mismatch(Exception):
    """The node has another type than the field. The caller, which knows all allowed types, writes the message."""


class _Reader:
    def __init__(self) -> None:
        self.faults: list[tuple[int, str, str]] = []
        self.lines: dict[str, int] = {}  # of every key met so far, dotted

    def read(self, node: yaml.Node, kind: Any, key: str, line: int) -> Any:
        """The value of `node` as type `kind`, or `_BAD` after recording its faults."""
        try:
            value = self._convert(node, kind, key, line)
        except _Mismatch:
            self.faults.append((line, key, f"must be {_describe(kind)}, got {_show(node)}{_near(node, kind)}"))
            return _BAD
        unmet = [] if value is _BAD else _unmet(value, kind)
        self.faults += [(line, key, message) for message in unmet]
        return _BAD if unmet else value

    def _convert(self, node: yaml.Node, kind: Any, key: str, line: int) -> Any:
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self._convert(node, arguments[0], key, line)
        if origin in (Union, UnionType):
            return self._union(node, arguments, key, line)
        if origin is Literal:
            if isinstance(node, yaml.ScalarNode) and node.value in arguments:
                return node.value
            raise _Mismatch
        if origin is tuple:
            return self._tuple(node, arguments, key)
        if origin is dict:
            return self._dict(node, arguments[1], key)
        if dataclasses.is_dataclass(kind):
            return self._section(node, kind, key, line)
        return _scalar(node, kind)

    def _union(self, node: yaml.Node, kinds: tuple[Any, ...], key: str, line: int) -> Any:
        for kind in kinds:
            try:
                value = self._convert(node, kind, key, line)
            except _Mismatch:
                continue
            unmet = [] if value is _BAD else _unmet(value, kind)
            self.faults += [(line, key, message) for message in unmet]
            return _BAD if unmet else value
        raise _Mismatch

    def _tuple(self, node: yaml.Node, kinds: tuple[Any, ...], key: str) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            raise _Mismatch
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = (kinds[0],) * len(node.value)
        if len(kinds) != len(node.value):
            raise _Mismatch
        values = [
            self.read(item, kind, f"{key}[{index}]", _line(item))
            for index, (item, kind) in enumerate(zip(node.value, kinds, strict=True))
        ]
        return _BAD if _BAD in values else tuple(values)

    def _dict(self, node: yaml.Node, kind: Any, key: str) -> Any:
        values = {name: self.read(item, kind, at, line) for name, item, at, line in self._items(node, key)}
        return _BAD if _BAD in values.values() else values

    def _section(self, node: yaml.Node, cls: Any, key: str, line: int) -> Any:
        hints, before = _hints(cls), len(self.faults)
        values = {}
        for name, item, at, item_line in self._items(node, key):
            if name in hints:
                values[name] = self.read(item, hints[name], at, item_line)
            else:
                self.faults.append((item_line, at, f"unknown key{did_you_mean(name, hints)}"))
        for field in dataclasses.fields(cls):
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and field.name not in values:
                at = f"{key}.{field.name}" if key else field.name
                self.faults.append((line, at, f"missing; must be {_describe(hints[field.name])}"))
                values[field.name] = _BAD
        # Fields are checked together even if there are unknown or repeated keys, but not if one is missing or
        # unusable.
        if _BAD in values.values():
            return _BAD
        section = cls(**values)
        for name, message in _check(section):
            at = f"{key}.{name}" if key else name
            self.faults.append((self.lines.get(at, line), at, message))
        return section if len(self.faults) == before else _BAD

    def _items(self, node: yaml.Node, key: str) -> Iterator[tuple[str, yaml.Node, str, int]]:
        if not isinstance(node, yaml.MappingNode):
            raise _Mismatch
        seen: dict[str, int] = {}
        for name_node, item in node.value:
            line = _line(name_node)
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else _show(name_node)
            at = f"{key}.{name}" if key else name
            if name in seen:
                self.faults.append((line, at, f"given twice (first on line {seen[name]})"))
                continue
            seen[name] = self.lines[at] = line
            yield name, item, at, line


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes where a number could be read: PyYAML does not for `1E1`, a number to `_scalar`."""

    def represent_text(self, text: str) -> yaml.Node:
        try:
            float(text)
        except ValueError:
            return self.represent_str(text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'")


_Dumper.add_representer(str, _Dumper.represent_text)


def _scalar(node: yaml.Node, kind: type) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        raise _Mismatch
    tag = node.tag.rpartition(":")[2]
    # YAML 1.1 reads `1e-4` as text, since it has no dot; in a number field it can only be meant as a number.
    bare_text = tag == "str" and node.style is None
    fits = {float: tag in ("int", "float") or bare_text, NoneType: tag == "null"}.get(kind, tag == kind.__name__)
    if not fits:
        raise _Mismatch
    try:
        value = node.value if bare_text else yaml.constructor.SafeConstructor().construct_object(node)
        if kind is not float:
            return value
        number = float(value)
    except (ValueError, OverflowError):
        raise _Mismatch from None
    if not math.isfinite(number):
        raise _Mismatch
    return number


def _unmet(value: Any, kind: Any) -> list[str]:
    """Messages of the `Must`s in the annotation of a value that do not hold."""
    if get_origin(kind) is not Annotated or value is None:
        return []
    return [
        f"must be {must.text}, got {value}"
        for must in get_args(kind)[1:]
        if isinstance(must, Must) and not must.holds(value)
    ]


def _check(section: Any) -> Iterable[tuple[str, str]]:
    return getattr(section, "check", lambda: ())()


def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _describe(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _describe(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, arguments))
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} times "
        return f"a list of {count}{_describe(arguments[0])}"
    if origin is dict:
        return f"a mapping of names to {_describe(arguments[1])}"
    if dataclasses.is_dataclass(kind):
        return f"a section with the keys {', '.join(_hints(kind))}"
    return _SCALARS[kind]


def _near(node: yaml.Node, kind: Any) -> str:
    """A hint for a mistyped word of a Literal."""
    if get_origin(kind) is not Literal or not isinstance(node, yaml.ScalarNode):
        return ""
    near = difflib.get_close_matches(node.value, get_args(kind), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _show(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value[:60]) if node.tag.endswith(":str") else node.value[:60] or "nothing"
    return f"a list of {len(node.value)}" if isinstance(node, yaml.SequenceNode) else "a section"


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
