"""Reading the fields of a configuration's dataclass from JSON, with all faults at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from .errors import ModelError

# What every saved configuration says of its origin.
_ORIGIN = ("_class_name", "_diffusers_version", "_name_or_path")


def read_fields(
    cls: type,
    data: Mapping[str, Any],
    where: str,
    title: str,
    *,
    ignored: Collection[str] = (),
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
) -> dict[str, Any]:
    """Arguments of the dataclass `cls` from a JSON object; lists become tuples.

    Args:
        where: names the object in errors.
        title: of the architecture, in errors.
        ignored: further keys that are known and say nothing about the decoder's function.
        fixed: keys that would change the function, with the values of which each is supported.

    Raises ModelError for unknown keys, wrong types, unsupported values and missing keys.
    """
    fixed = fixed or {}
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    faults = []
    for key, value in data.items():
        frozen = tuple(value) if isinstance(value, list) else value
        if key in fields:
            values[key] = frozen
            if fault := _type_fault(key, frozen, str(fields[key].type)):
                faults.append(fault)
        elif key in fixed:
            if frozen not in fixed[key]:
                faults.append(f"{key}={value!r} is not supported; {fixed[key][0]!r} is")
        elif key not in ignored and key not in _ORIGIN:
            faults.append(f"unknown key {key!r}")
    missing = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        faults.append(f"missing {', '.join(missing)}")
    if faults:
        raise ModelError(
            f"{where} is not a {title} configuration that can be built: {'; '.join(faults)}. "
            f"Known keys: {', '.join(sorted(fields))}."
        )
    return values


def length_faults(config: Any, lengths: Mapping[str, int], of: str) -> list[str]:
    """Sequences of a configuration that have another number of entries than needed, a sentence each.

    Args:
        lengths: entries that each field needs.
        of: what they are entries of, such as `4 blocks`.
    """
    given = {name: len(getattr(config, name)) for name in lengths}
    return [
        f"{name} has {given[name]} entries, {wanted} needed for {of}"
        for name, wanted in lengths.items()
        if given[name] != wanted
    ]


def _type_fault(key: str, value: Any, annotation: str) -> str | None:
    """Why `value` does not have the annotated type, or None. bool is no int here."""
    kinds: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}
    if annotation.startswith("tuple["):
        kind = annotation.removeprefix("tuple[").split(",")[0]
        ok = isinstance(value, tuple) and all(_is(item, kinds[kind]) for item in value)
        return None if ok else f"{key}={value!r} is not a list of {kind}"
    return None if _is(value, kinds[annotation]) else f"{key}={value!r} is not {annotation}"


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
