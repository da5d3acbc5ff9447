"""What the iOS app shared is imported; what a Mac would run is built right."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handheld.runtime.devices import ios
from handheld.runtime.errors import RuntimeFailure, RuntimeMissing
from handheld.runtime.profile_file import read_profile, write_profile

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "profiles"

LISTED = """{"info": {"outcome": "success"}, "result": {"devices": [
 {"identifier": "ID-1", "deviceProperties": {"name": "Ada's iPhone"},
  "hardwareProperties": {"platform": "iOS"},
  "connectionProperties": {"pairingState": "paired", "tunnelState": "connected"}},
 {"identifier": "ID-2", "deviceProperties": {"name": "Watch"},
  "hardwareProperties": {"platform": "watchOS"}, "connectionProperties": {"pairingState": "paired"}},
 {"identifier": "ID-3", "deviceProperties": {"name": "Old iPhone"},
  "hardwareProperties": {"platform": "iOS"},
  "connectionProperties": {"pairingState": "paired", "tunnelState": "unavailable"}}]}}"""


def test_a_shared_profile_is_of_the_bundle_or_refused(make_bundle: Callable, tmp_path: Path) -> None:
    bundle = make_bundle("ios")
    shared = read_profile(FIXTURES / "ios.json")
    with pytest.raises(RuntimeFailure, match="ios, cpuAndNeuralEngine, whose hash no artefact"):
        ios.import_profile(FIXTURES / "ios.json", bundle)
    own = dataclasses.replace(shared.subjects[0], sha256=bundle.artifact("ios").sha256)
    write_profile(dataclasses.replace(shared, subjects=(own,)), tmp_path / "own.json")
    assert ios.import_profile(tmp_path / "own.json", bundle).subjects == (own,)
    with pytest.raises(RuntimeFailure, match="was measured on android"):
        ios.import_profile(FIXTURES / "android.json")


def test_the_command_lines_move_bundle_and_profile_through_the_apps_container() -> None:
    device = ["--device", "ID-1"]
    container = ["--domain-type", "appDataContainer", "--domain-identifier", "dev.handheld.demo"]
    bundle = ["--source", "/b/ltx", "--destination", "Documents/Bundles/ltx"]
    assert ios.list_argv(Path("o.json")) == ["xcrun", "devicectl", "list", "devices", "--json-output", "o.json"]
    assert ios.push_argv("ID-1", Path("/b/ltx")) == [
        *("xcrun", "devicectl", "device", "copy", "to"),
        *device,
        *container,
        *bundle,
    ]
    launched = ios.launch_argv("ID-1", "ltx", "p.json", "org.example.app")
    assert launched[:5] == ["xcrun", "devicectl", "device", "process", "launch"]
    assert launched[-7:] == [*device, "org.example.app", "--profile", "ltx", "--profile-out", "p.json"]
    assert ios.pull_argv("ID-1", "p.json", Path("here.json")) == [
        *("xcrun", "devicectl", "device", "copy", "from"),
        *device,
        *container,
        *("--source", "Documents/Profiles/p.json", "--destination", "here.json"),
    ]


def test_a_phone_is_chosen_by_name_or_identifier() -> None:
    devices = ios.parse_devices(LISTED)
    assert devices == {"ID-1": "Ada's iPhone"}
    assert ios.choose(devices, None) == ios.choose(devices, "Ada's iPhone") == ios.choose(devices, "ID-1") == "ID-1"
    with pytest.raises(RuntimeFailure, match="devicectl sees no device"):
        ios.choose({}, None)
    with pytest.raises(RuntimeFailure, match=r"several devices: a \(1\), b \(2\)"):
        ios.choose({"1": "a", "2": "b"}, None)
    with pytest.raises(RuntimeFailure, match=r"No device c; devicectl sees a \(1\)"):
        ios.choose({"1": "a"}, "c")
    for text in ("{}", "no json"):
        with pytest.raises(RuntimeFailure, match="does not understand"):
            ios.parse_devices(text)


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac would look for a phone")
def test_away_from_a_mac_the_message_says_how_to_import(make_bundle: Callable) -> None:
    with pytest.raises(RuntimeMissing, match="share the profile, and give it with --import"):
        ios.profile_ios(make_bundle("ios"))
