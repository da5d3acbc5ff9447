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
    bundle = ["--source", "/b/ltx", "--destination", "Documents/ltx"]
    assert ios.list_argv(Path("o.json")) == ["xcrun", "devicectl", "list", "devices", "--json-output", "o.json"]
    assert ios.push_argv("ID-1", Path("/b/ltx")) == [
        *("xcrun", "devicectl", "device", "copy", "to"),
        *device,
        *container,
        *bundle,
    ]
    assert ios.launch_argv("ID-1", "org.example.app") == [
        *("xcrun", "devicectl", "device", "process", "launch"),
        *device,
        "org.example.app",
    ]
    assert ios.pull_argv("ID-1", "ltx", Path("here.json")) == [
        *("xcrun", "devicectl", "device", "copy", "from"),
        *device,
        *container,
        *("--source", "tmp/ltx.profile.json", "--destination", "here.json"),
    ]


def test_the_app_keeps_what_it_measured_where_it_is_fetched() -> None:
    """The names in the command lines are those of the app's sources."""
    app = Path(__file__).resolve().parents[3] / "ios_demo" / "HandheldDemo"
    player = (app / "HandheldDemo" / "Player.swift").read_text()
    assert 'temporaryDirectory.appendingPathComponent("\\(name).profile.json")' in player
    assert ".documentDirectory" in (app / "HandheldDemo" / "Library.swift").read_text()
    project = (app / "HandheldDemo.xcodeproj" / "project.pbxproj").read_text()
    assert f"PRODUCT_BUNDLE_IDENTIFIER = {ios.APP_ID};" in project


# Stands for xcrun on a Mac: lists a phone, takes the bundle, and has a new profile at the third fetch.
XCRUN = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  *"list devices"*) cp "$LISTED" "$5" ;;
  *"copy from"*)
    fetched=$(grep -c "copy from" "$LOG")
    for last; do :; done
    if [ "$fetched" -lt 3 ]; then echo stale > "$last"; else cp "$MEASURED" "$last"; fi ;;
esac
"""


def test_on_a_mac_the_app_is_started_and_the_new_profile_fetched(
    make_bundle: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = make_bundle("ios")
    shared = read_profile(FIXTURES / "ios.json")
    own = dataclasses.replace(shared.subjects[0], sha256=bundle.artifact("ios").sha256)
    write_profile(dataclasses.replace(shared, subjects=(own,)), tmp_path / "own.json")
    (tmp_path / "listed.json").write_text(LISTED)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "xcrun").write_text(XCRUN)
    (tmp_path / "bin" / "xcrun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    for name, path in (("LOG", "log"), ("LISTED", "listed.json"), ("MEASURED", "own.json")):
        monkeypatch.setenv(name, str(tmp_path / path))
    monkeypatch.setattr(ios.sys, "platform", "darwin")
    monkeypatch.setattr(ios, "_PULL_EVERY_SECONDS", 0.01)
    asked: list[bool] = []
    assert ios.profile_ios(bundle, on_ready=lambda: asked.append(True)).subjects == (own,)
    assert asked == [True]
    steps = [line.split(" --")[0] for line in (tmp_path / "log").read_text().splitlines()]
    fetch = "devicectl device copy from"
    assert steps[0] == "devicectl list devices"
    assert steps[1:] == [fetch, "devicectl device copy to", "devicectl device process launch", fetch, fetch]
    with pytest.raises(RuntimeFailure, match="Nothing was measured in 0 s"):
        ios.profile_ios(bundle, timeout_seconds=0)


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
