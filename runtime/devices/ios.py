"""iPhones: what the app measured is imported; on a Mac, `xcrun devicectl` moves bundle and profile.

The command lines are built here everywhere, and run on macOS only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..bundle import Bundle
from ..errors import RuntimeFailure, RuntimeMissing
from ..profile_file import read_profile
from ..profile_record import Profile

APP_ID = "dev.handheld.demo"

# Where the app keeps what it was sent, and what it measured, in its data container.
_BUNDLES = "Documents/Bundles"
_PROFILES = "Documents/Profiles"

_DEVICECTL = ("xcrun", "devicectl")


def import_profile(path: str | os.PathLike[str], bundle: Bundle | None = None) -> Profile:
    """Read the profile that the app shared.

    Args:
        bundle: that was measured; its artefacts' hashes must be those in the profile.

    Raises RuntimeFailure for a file that is no profile, not from an iPhone, or of artefacts that the bundle does
    not have.
    """
    profile = read_profile(path)
    if profile.device.platform != "ios":
        raise RuntimeFailure(f"{path} was measured on {profile.device.platform}, not on an iPhone or iPad.")
    if bundle is not None:
        known = {artifact.sha256 for artifact in bundle.artifacts}
        strange = [one.label for one in profile.subjects if one.sha256 not in known]
        if strange:
            raise RuntimeFailure(
                f"{path} measured {', '.join(strange)}, whose hash no artefact of {bundle.path} has: it is of "
                "another bundle, or of another export of it."
            )
    return profile


def list_argv(out: Path) -> list[str]:
    """The devices, as JSON in `out`."""
    return [*_DEVICECTL, "list", "devices", "--json-output", str(out)]


def push_argv(device: str, bundle: Path, app_id: str = APP_ID) -> list[str]:
    """Copy a bundle to where the app looks for bundles."""
    return [
        *(*_DEVICECTL, "device", "copy", "to", "--device", device),
        *("--domain-type", "appDataContainer", "--domain-identifier", app_id),
        *("--source", str(bundle), "--destination", f"{_BUNDLES}/{bundle.name}"),
    ]


def launch_argv(device: str, bundle: str, profile: str, app_id: str = APP_ID) -> list[str]:
    """Start the app to measure a bundle of that name and to end; waits for it."""
    return [
        *(*_DEVICECTL, "device", "process", "launch", "--console", "--terminate-existing", "--device", device),
        *(app_id, "--profile", bundle, "--profile-out", profile),
    ]


def pull_argv(device: str, profile: str, target: Path, app_id: str = APP_ID) -> list[str]:
    """Copy what the app measured from it."""
    return [
        *(*_DEVICECTL, "device", "copy", "from", "--device", device),
        *("--domain-type", "appDataContainer", "--domain-identifier", app_id),
        *("--source", f"{_PROFILES}/{profile}", "--destination", str(target)),
    ]


def parse_devices(text: str) -> dict[str, str]:
    """Identifier to name of the paired phones and tablets that answer, from what `list_argv` wrote.

    Raises RuntimeFailure for what is not devicectl's JSON.
    """
    try:
        listed = json.loads(text)["result"]["devices"]
        return {
            one["identifier"]: one["deviceProperties"]["name"]
            for one in listed
            if one["hardwareProperties"]["platform"] in ("iOS", "iPadOS")
            and one["connectionProperties"].get("pairingState") == "paired"
            and one["connectionProperties"].get("tunnelState") != "unavailable"
        }
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeFailure(f"devicectl wrote what this handheld does not understand: {error!r}.") from error


def choose(devices: dict[str, str], wanted: str | None) -> str:
    """The identifier to use, by identifier or name. Raises RuntimeFailure saying what there is."""
    there = ", ".join(f"{name} ({identifier})" for identifier, name in devices.items())
    found = [key for key, name in devices.items() if wanted is None or wanted in (key, name)]
    if len(found) == 1:
        return found[0]
    if wanted is not None:
        raise RuntimeFailure(f"No device {wanted}; devicectl sees {there or 'none'}.")
    if found:
        raise RuntimeFailure(f"devicectl sees several devices: {there}. Choose one with --serial.")
    raise RuntimeFailure(
        "devicectl sees no device. Connect an iPhone by cable, unlock it, trust this Mac, and turn on its "
        "developer mode (Settings, Privacy & Security)."
    )


def profile_ios(bundle: Bundle, *, device: str | None = None, app_id: str = APP_ID) -> Profile:
    """Measure a bundle with the app on a connected iPhone. Needs macOS with Xcode, and the app installed.

    Raises RuntimeMissing elsewhere, saying how to import; RuntimeFailure where devicectl fails.
    """
    if sys.platform != "darwin":
        raise RuntimeMissing(
            "devicectl is a part of Xcode, on macOS. Here: open the bundle in the iOS app, measure it there, share "
            "the profile, and give it with --import."
        )
    with tempfile.TemporaryDirectory(prefix="handheld-") as scratch:
        listed = Path(scratch) / "devices.json"
        _run(list_argv(listed))
        chosen = choose(parse_devices(listed.read_text(encoding="utf-8")), device)
        name = f"{bundle.path.resolve().name}-{time.time_ns()}.json"
        target = Path(scratch) / name
        _run(push_argv(chosen, bundle.path.resolve(), app_id))
        _run(launch_argv(chosen, bundle.path.resolve().name, name, app_id))
        _run(pull_argv(chosen, name, target, app_id))
        return import_profile(target, bundle)


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise RuntimeMissing("xcrun is not there: install Xcode.") from error
    if done.returncode:
        raise RuntimeFailure(f"`{' '.join(command[:6])} ...` failed: {(done.stderr or done.stdout).strip()}")
