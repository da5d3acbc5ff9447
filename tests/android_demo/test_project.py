"""The Android project where no Android tool is needed: its pins, its promises, and how its check fetches tools."""

from __future__ import annotations

import importlib.util
import re
import struct
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "android_demo"
VERSIONS = tomllib.loads((PROJECT / "gradle" / "libs.versions.toml").read_text())["versions"]
NAMESPACE = "{http://schemas.android.com/apk/res/android}"


@pytest.fixture(scope="module")
def tools() -> ModuleType:
    return module_of("tools")


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"android_check_{name}", PROJECT / "check" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_phone_runs_programs_of_the_exporters_version() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert VERSIONS["executorch"] == pinned["executorch"]


def test_what_is_checked_here_is_of_the_versions_that_gradle_takes() -> None:
    text = (PROJECT / "check" / "tools.py").read_text()
    assert f'"kotlin-compiler", "{VERSIONS["kotlin"]}"' in text
    assert f"Version {VERSIONS['onnxruntime']}" in text
    sdks = (PROJECT / "app" / "build.gradle.kts").read_text()
    checked = re.search(r'MIN_SDK, TARGET_SDK = "(\d+)", "(\d+)"', (PROJECT / "check" / "__main__.py").read_text())
    assert checked
    assert f"minSdk = {checked[1]}\n" in sdks
    assert f"targetSdk = {checked[2]}\n" in sdks


def test_the_app_asks_for_no_permission() -> None:
    for manifest in PROJECT.glob("*/src/main/AndroidManifest.xml"):
        assert [tag.tag for tag in ET.parse(manifest).iter() if "permission" in tag.tag] == []


def test_only_the_first_screen_can_be_started_by_others() -> None:
    application = ET.parse(PROJECT / "app" / "src" / "main" / "AndroidManifest.xml").find("application")
    assert application is not None
    exported = {part.get(f"{NAMESPACE}name"): part.get(f"{NAMESPACE}exported") for part in application}
    assert {name for name, value in exported.items() if value != "false"} == {".LibraryActivity"}


def test_every_string_of_the_app_is_used_and_every_used_one_is_there() -> None:
    main = PROJECT / "app" / "src" / "main"
    strings = {tag.get("name") for tag in ET.parse(main / "res" / "values" / "strings.xml").iter("string")}
    files = [*main.rglob("*.kt"), *main.rglob("layout/*.xml"), main / "AndroidManifest.xml"]
    used = {name for file in files for name in re.findall(r"(?:R\.|@)string[./](\w+)", file.read_text())}
    assert used == strings


def test_a_download_of_another_hash_is_not_kept(tools: ModuleType, tmp_path: Path) -> None:
    fetch = [sys.executable, "-c", "open('tool.tgz', 'w').write('altered')"]
    with pytest.raises(tools.Missing, match="not what it was") as caught:
        tools.Tools(tmp_path)._fetched("tool.tgz", fetch, "0" * 64)
    assert "0" * 64 in str(caught.value)
    assert not (tmp_path / "tool.tgz").exists()


def test_a_download_that_fails_says_why(tools: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(tools.Missing, match=r"tool\.tgz cannot be fetched.*no such package"):
        tools.Tools(tmp_path)._fetched("tool.tgz", [sys.executable, "-c", "exit('no such package')"], "0" * 64)


def test_a_program_that_is_not_there_is_named_with_its_package(tools: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(tools.Missing, match=r"no-such-tool is not installed \(apt-get install that-package\)"):
        tools.Tools(tmp_path).program("no-such-tool", "that-package")


def test_a_library_of_android_is_left_with_its_need_of_onnxruntime_alone() -> None:
    names = b"\0libc.so\0libonnxruntime.so\0"
    strings, dynamic = 64 + 56, 160
    needed, versions = 1, (0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFF)
    entries = [(needed, 1), (needed, 9), (5, strings), *((tag, 7) for tag in versions), (10, len(names)), (0, 0)]
    header = bytearray(64)
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, 1)
    segment = struct.pack("<IIQQQQQQ", 2, 0, dynamic, 0, 0, 16 * len(entries), 0, 0)
    table = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    library = (bytes(header) + segment + names).ljust(dynamic, b"\0") + table
    changed = module_of("ort_jvm").without_android(library)
    assert changed[:dynamic] == library[:dynamic]
    left = list(struct.iter_unpack("<QQ", changed[dynamic:]))
    assert left == [(needed, 9), (5, strings), (10, len(names))] + [(0, 0)] * 5
