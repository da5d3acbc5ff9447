"""The Xcode project, property lists and package: what can be told without Xcode."""

from __future__ import annotations

import plistlib
import re
from pathlib import Path

import pytest

IOS = Path(__file__).resolve().parents[2] / "ios_demo"
DEMO = IOS / "HandheldDemo"
KIT = IOS / "HandheldKit"


def objects() -> dict[str, str]:
    """Object id -> body, of the project file."""
    text = (DEMO / "HandheldDemo.xcodeproj" / "project.pbxproj").read_text()
    _, *parts = re.split(r"^\t\t([0-9A-F]{24})(?: /\*.*?\*/)? = \{", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2]))


def test_every_object_that_the_project_names_is_in_it() -> None:
    known = objects()
    text = (DEMO / "HandheldDemo.xcodeproj" / "project.pbxproj").read_text()
    assert len(known) > 10
    assert set(re.findall(r"\b[0-9A-F]{24}\b", text)) == set(known)
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")


def test_every_file_that_the_project_names_is_there() -> None:
    bodies = "\n".join(objects().values())
    (group,) = re.findall(r"PBXFileSystemSynchronizedRootGroup;\s*path = (\S+);", bodies)
    (package,) = re.findall(r"relativePath = (\S+);", bodies)
    plists = set(re.findall(r'INFOPLIST_FILE = "(.*?)";', bodies))
    assert list((DEMO / group).glob("*.swift"))
    assert (DEMO / package / "Package.swift").is_file()
    assert plists
    assert all((DEMO / plist).is_file() for plist in plists)


def test_files_can_be_dropped_into_the_app() -> None:
    info = plistlib.loads((DEMO / "HandheldDemo-Info.plist").read_bytes())
    assert info == {"UIFileSharingEnabled": True, "LSSupportsOpeningDocumentsInPlace": True}


def test_the_privacy_manifest_declares_what_the_sources_use() -> None:
    """Apple refuses apps that call these without a reason, and reasons for what is not called confuse reviewers."""
    manifest = plistlib.loads((DEMO / "HandheldDemo" / "PrivacyInfo.xcprivacy").read_bytes())
    declared = {entry["NSPrivacyAccessedAPIType"] for entry in manifest["NSPrivacyAccessedAPITypes"]}
    sources = "\n".join(path.read_text() for path in (*KIT.rglob("*.swift"), *DEMO.rglob("*.swift")))
    calls = {
        "NSPrivacyAccessedAPICategoryFileTimestamp": r"attributesOfItem|\bfstat\b",
        "NSPrivacyAccessedAPICategorySystemBootTime": r"clock_gettime_nsec_np|systemUptime|mach_absolute_time",
        "NSPrivacyAccessedAPICategoryDiskSpace": r"volumeAvailableCapacity|systemFreeSize|\bstatfs\b",
        "NSPrivacyAccessedAPICategoryUserDefaults": r"UserDefaults|AppStorage",
    }
    assert declared == {category for category, words in calls.items() if re.search(words, sources)}
    assert manifest["NSPrivacyCollectedDataTypes"] == []
    assert manifest["NSPrivacyTracking"] is False


@pytest.mark.parametrize("link", ["src", "include"])
def test_the_package_compiles_the_engine_s_own_sources(link: str) -> None:
    path = KIT / "Sources" / "CHandheldFlash" / link
    assert path.is_symlink()
    assert path.resolve() == (IOS.parent / "runtime" / "flash" / link).resolve()
