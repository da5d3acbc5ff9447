"""Reading bundles: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handheld.runtime import manifest as m
from handheld.runtime.bundle import Bundle, read_bundle
from handheld.runtime.errors import BundleError

SCHEMA = json.loads(
    (Path(__file__).resolve().parents[2] / "runtime" / "schema" / "manifest.schema.json").read_text()
)


def test_a_written_bundle_reads_back_as_it_was(plain_bundle: Bundle) -> None:
    assert read_bundle(plain_bundle.path) == plain_bundle


def test_golden_tensors_come_back_by_the_names_of_the_specs(plain_bundle: Bundle) -> None:
    inputs, outputs = plain_bundle.golden()
    assert {name: array.shape for name, array in inputs.items()} == {"latents": (1, 4, 2, 8, 8)}
    assert {name: array.shape for name, array in outputs.items()} == {"frames": (1, 3, 2, 16, 16)}
    assert np.abs(outputs["frames"]).max() > 0.9


def test_a_written_manifest_fits_the_schema(plain_bundle: Bundle, schema_faults: Callable) -> None:
    tree = json.loads((plain_bundle.path / "manifest.json").read_text())
    assert schema_faults(tree, "manifest") == []
    del tree["artifacts"][0]["tolerance"]["reason"]
    assert schema_faults(tree, "manifest") != []


@pytest.mark.parametrize(
    ("cls", "definition"),
    [
        (m.TensorSpec, "tensor"),
        (m.Golden, "golden"),
        (m.Artifact, "artifact"),
        (m.Method, "method"),
        (m.Tolerance, "tolerance"),
        (m.RewriteRecord, "rewrite"),
        (m.Refusal, "refusal"),
        (m.Selection, "selection"),
        (m.Option, "option"),
        (m.Manifest, None),
    ],
)
def test_schema_and_dataclasses_have_the_same_fields(cls: type, definition: str | None) -> None:
    schema = SCHEMA["$defs"][definition] if definition else SCHEMA
    own = {field.name for field in fields(cls)} | (set() if definition else {"format_version", "kind"})
    assert set(schema["properties"]) == own
    # Streams are of streamed artefacts only; the other two of latents only.
    assert set(schema["required"]) == own - {"stream", "dynamic", "statistics", "normalised"}
    assert schema["additionalProperties"] is False


def test_schema_and_parser_allow_the_same_words() -> None:
    artifact, tensor = SCHEMA["$defs"]["artifact"]["properties"], SCHEMA["$defs"]["tensor"]["properties"]
    assert SCHEMA["properties"]["format_version"]["const"] == m.FORMAT_VERSION
    assert tuple(SCHEMA["properties"]["kind"]["enum"]) == tuple(dict.fromkeys(m.KINDS.values()))
    assert tuple(artifact["runtime"]["enum"]) == m.RUNTIMES
    assert tuple(artifact["input_dtype"]["enum"]) == m.DTYPES
    assert tuple(artifact["output_dtype"]["enum"]) == (*m.DTYPES, *m.PIXEL_FORMS)
    assert tuple(tensor["dtype"]["enum"]) == (*m.DTYPES, m.PIXEL_DTYPE)
    assert tuple(tensor["layout"]["enum"]) == m.LAYOUTS


def test_a_folder_hashes_as_documented(plain_bundle: Bundle) -> None:
    stream = b"Data/weight.bin\0" + b"7\0" + b"weights" + b"Manifest.json\0" + b"2\0" + b"{}"
    artifact = plain_bundle.artifact("ios")
    assert artifact.sha256 == hashlib.sha256(stream).hexdigest()
    assert artifact.size_bytes == 9


def test_reading_does_not_hash_but_checking_does(plain_bundle: Bundle) -> None:
    (plain_bundle.path / "onnx" / "decoder.onnx").write_bytes(b"ONNX model")
    bundle = read_bundle(plain_bundle.path)
    with pytest.raises(BundleError, match="altered") as caught:
        bundle.check(bundle.artifact("onnx"))
    assert hashlib.sha256(b"ONNX model").hexdigest() in str(caught.value)
    assert hashlib.sha256(b"onnx model").hexdigest() in str(caught.value)


@pytest.mark.parametrize(
    ("contents", "says"),
    [(b"onnx", "truncated: 4 bytes, the manifest says 10"), (b"onnx model and more", "grown: 19 bytes")],
)
def test_another_size_is_said_as_such(plain_bundle: Bundle, contents: bytes, says: str) -> None:
    (plain_bundle.path / "onnx" / "decoder.onnx").write_bytes(contents)
    with pytest.raises(BundleError, match=says):
        plain_bundle.check(plain_bundle.artifact("onnx"))


def test_a_missing_artefact_is_said_as_such(plain_bundle: Bundle) -> None:
    (plain_bundle.path / "onnx" / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"onnx/decoder\.onnx is missing"):
        plain_bundle.check(plain_bundle.artifact("onnx"))


def test_a_folder_artefact_is_checked_file_by_file(plain_bundle: Bundle) -> None:
    artifact = plain_bundle.artifact("ios")
    package = plain_bundle.path / artifact.path
    plain_bundle.check(artifact)
    (package / "empty").touch()
    with pytest.raises(BundleError, match="altered"):
        plain_bundle.check(artifact)
    (package / "empty").unlink()
    (package / "Data" / "weight.bin").rename(package / "Data" / "weights.bin")
    with pytest.raises(BundleError, match="altered"):
        plain_bundle.check(artifact)
    (package / "Data" / "weights.bin").rename(package / "Data" / "weight.bin")
    plain_bundle.check(artifact)
    (package / "link").symlink_to(package / "Manifest.json")
    with pytest.raises(BundleError, match="symbolic link"):
        plain_bundle.check(artifact)


def test_an_altered_golden_file_is_not_used(plain_bundle: Bundle) -> None:
    path = plain_bundle.path / "golden.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"golden\.safetensors was altered"):
        plain_bundle.golden()


def test_a_tolerance_without_a_limit_is_refused(plain_bundle: Bundle, edit_manifest: Callable) -> None:
    nothing = {"max_abs": None, "reason": "none", "min_psnr_db": None}
    with pytest.raises(BundleError, match=r"artifacts\[0\]\.tolerance: .* nothing would be checked"):
        edit_manifest(plain_bundle, lambda tree: tree["artifacts"][0].update(tolerance=nothing))


@pytest.mark.parametrize(
    ("tolerance", "fault"),
    [
        (m.Tolerance(0.1, "why"), ""),
        (m.Tolerance(0.01, "why"), "The largest error, 0.05, is above the tolerance, 0.01"),
        (m.Tolerance(None, "why", 30.0), ""),
        (m.Tolerance(None, "why", 50.0), "The PSNR, 40.0 dB, is below the tolerance, 50 dB"),
        (m.Tolerance(0.1, "why", 50.0), "The PSNR, 40.0 dB, is below the tolerance, 50 dB"),
    ],
)
def test_a_tolerance_says_which_limit_is_broken(tolerance: m.Tolerance, fault: str) -> None:
    assert tolerance.fault(0.05, 40.0) == fault


@pytest.mark.parametrize("version", [2, 0, "1", True, None])
def test_another_version_is_named_with_the_one_understood(
    plain_bundle: Bundle, edit_manifest: Callable, version: Any
) -> None:
    with pytest.raises(BundleError, match=rf"format_version {version!r}; this handheld understands 1"):
        edit_manifest(plain_bundle, lambda tree: tree.update(format_version=version, later_key=1))


def test_every_fault_of_a_manifest_is_reported_at_once(plain_bundle: Bundle, edit_manifest: Callable) -> None:
    def spoil(tree: dict[str, Any]) -> None:
        tree["colour"] = "blue"
        del tree["versions"]
        tree["inputs"][0]["shape"] = [1, 4.5, 0]
        tree["artifacts"][0] |= {"sha256": "abc", "runtime": "windows", "size_bytes": True}
        tree["artifacts"][1]["tolerance"]["max_abs"] = -1

    with pytest.raises(BundleError) as caught:
        edit_manifest(plain_bundle, spoil)
    lines = str(caught.value).splitlines()[1:]
    assert sorted(line.split(":")[0].strip() for line in lines) == [
        "artifacts[0].runtime",
        "artifacts[0].sha256",
        "artifacts[0].size_bytes",
        "artifacts[1].tolerance.max_abs",
        "colour",
        "inputs[0].shape[1]",
        "inputs[0].shape[2]",
        "versions",
    ]
    assert any('"coreml" or "coreai", found \'windows\'' in line for line in lines)


CLIMBING = [
    "../plain/onnx/decoder.onnx",
    "/etc/passwd",
    "onnx/../../x",
    "a\\b",
    "./onnx/x",
    "onnx//x",
    "",
    ".",
    "a\0b",
]


@pytest.mark.parametrize("path", CLIMBING)
@pytest.mark.parametrize("entry", ["artefact", "golden"])
def test_a_path_that_could_leave_the_bundle_is_refused(
    plain_bundle: Bundle, edit_manifest: Callable, path: str, entry: str
) -> None:
    with pytest.raises(BundleError, match=r"path: wanted a path inside the bundle"):
        edit_manifest(
            plain_bundle,
            lambda tree: (tree["golden"] if entry == "golden" else tree["artifacts"][0]).update(path=path),
        )


def test_a_link_that_leaves_the_bundle_is_refused(plain_bundle: Bundle, tmp_path: Path) -> None:
    file = plain_bundle.path / "onnx" / "decoder.onnx"
    outside = tmp_path / "outside.onnx"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        read_bundle(plain_bundle.path)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        plain_bundle.check(plain_bundle.artifact("onnx"))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t["artifacts"][1].update(name="onnx"), 'name "onnx" is used twice'),
        (lambda t: t["artifacts"][1].update(path="onnx/decoder.onnx"), "is used twice"),
        (lambda t: t["artifacts"][1].update(path="onnx"), "onnx/decoder.onnx lies inside onnx"),
        (lambda t: t["artifacts"][1].update(path="manifest.json"), "manifest.json"),
        (lambda t: t["inputs"][0].update(shape=[1, 4, 8, 8]), "4 dimensions, NCTHW has 5"),
        (lambda t: t["outputs"][0].update(range=[1, -1]), "range: wanted"),
        (lambda t: t["outputs"][0].update(range=[0, 1, 2]), "range: wanted"),
        (lambda t: t["outputs"].append(t["outputs"][0]), 'outputs: name "frames" is used twice'),
        (lambda t: t.update(artifacts=[]), "at least 1 items"),
        (lambda t: t.update(created_utc="yesterday"), "a UTC time such as"),
        (lambda t: t.update(kind="llm"), "kind 'llm'"),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    plain_bundle: Bundle, edit_manifest: Callable, edit: Callable, says: str
) -> None:
    with pytest.raises(BundleError) as caught:
        edit_manifest(plain_bundle, edit)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"format_version": 1, "format_version": 1}', "given twice: format_version"),
        (b'{"format_version": 1, "kind": "video_decoder", "name": NaN}', "NaN is not JSON"),
        (b'{"format_version": 1', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "no format_version"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_what_is_not_a_manifest_is_refused(plain_bundle: Bundle, text: bytes, says: str) -> None:
    (plain_bundle.path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=says):
        read_bundle(plain_bundle.path)


def test_what_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(BundleError, match="is not a bundle"):
            read_bundle(path)


def test_an_unknown_artefact_is_answered_with_the_known_ones(plain_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match='no artefact "tvm"; it has: onnx, ios'):
        plain_bundle.artifact("tvm")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), junk=JSON)
def test_a_manifest_with_any_value_replaced_parses_or_is_refused_in_our_words(
    plain_bundle: Bundle, data: st.DataObject, junk: Any
) -> None:
    tree = json.loads((plain_bundle.path / "manifest.json").read_text())
    node: Any = tree
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = junk
        break
    text = json.dumps(tree)
    try:
        parsed = m.parse_manifest(text, "manifest.json")
    except BundleError:
        return
    assert m.parse_manifest(parsed.to_json(), "again") == parsed
