"""Bundles that are shared with the Kotlin and Swift tests: one good, many that no reader may take.

`tests/fixtures/bundles/make.py` says how `expected.json` is read.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from handheld.runtime.bundle import read_bundle
from handheld.runtime.errors import BundleError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "bundles"
CASES: dict[str, dict[str, Any]] = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))

# The words by which a message of each kind is known; the first that is found says the kind.
KINDS = {
    "escapes": r"wanted a path inside the bundle|leads out of the bundle|symbolic link",
    "version": r"this handheld understands",
    "tensors": r"golden\.safetensors( is not safetensors)?: ",
    "missing": r"is missing|is not a bundle",
    "altered": r"is truncated|has grown|was altered",
    "malformed": r"is not valid|not UTF-8|no format_version",
}


def lay_out(name: str, folder: Path) -> Path:
    """The bundle of a case, as `make.py` describes."""
    case, bundle = CASES[name], folder / "bundle"
    shutil.copytree(FIXTURES / "good", bundle)
    if (FIXTURES / "cases" / name).is_dir():
        shutil.copytree(FIXTURES / "cases" / name, bundle, dirs_exist_ok=True)
    for path in case.get("remove", ()):
        (bundle / path).unlink()
    for at, target in case.get("links", {}).items():
        place = bundle / at
        if target.startswith("outside"):
            outside = folder / target
            outside.parent.mkdir(parents=True, exist_ok=True)
            place.rename(outside)
            place.symlink_to(outside)
        else:
            place.symlink_to(target)
    return bundle


def open_fully(path: Path) -> None:
    bundle = read_bundle(path)
    for artifact in bundle.artifacts:
        bundle.check(artifact)
    for shape in bundle.shapes:
        bundle.golden(shape)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["error"]])
def test_every_hostile_bundle_is_refused_for_the_expected_reason(name: str, tmp_path: Path) -> None:
    path, case = lay_out(name, tmp_path), CASES[name]
    with pytest.raises(BundleError) as caught:
        open_fully(path)
    message = str(caught.value)
    message.encode()  # a message that cannot be printed helps no one
    kind = next((kind for kind, words in KINDS.items() if re.search(words, message)), None)
    assert kind == case["error"], message
    assert [part for part in case["says"] if part not in message] == []


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "golden" in case])
def test_golden_tensors_are_as_written(name: str, tmp_path: Path) -> None:
    path = lay_out(name, tmp_path)
    open_fully(path)
    bundle = read_bundle(path)
    for shape in bundle.shapes:
        end = f".{shape}" if shape else ""
        for side, arrays in zip(("input", "output"), bundle.golden(shape)):
            for tensor, array in arrays.items():
                expected = CASES[name]["golden"][f"{side}.{tensor}{end}"]
                assert array.ravel()[: len(expected)].tolist() == expected


def test_a_run_of_an_image_decoder_makes_one_frame(tmp_path: Path) -> None:
    for name, frames in {"good": [1, 3], "image_taken": [1]}.items():
        bundle = read_bundle(lay_out(name, tmp_path / name))
        made = bundle.manifest.outputs[0]
        assert [made.frames(method.outputs[0]) for method in bundle.artifacts[0].methods] == frames


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case["error"]])
def test_what_is_not_hostile_is_taken(name: str, tmp_path: Path) -> None:
    open_fully(lay_out(name, tmp_path))


def test_the_list_names_every_folder_of_cases_and_every_kind() -> None:
    assert {folder.name for folder in (FIXTURES / "cases").iterdir()} <= set(CASES)
    assert {case["error"] for case in CASES.values()} == {None, *KINDS}
