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
from collections.abc import Callable, Sequence
from pathlib import Path

from ..bundle import Bundle
from ..errors import RuntimeFailure, RuntimeMissing
from ..profile_file import read_profile
from ..profile_record import Profile

APP_ID = "dev.handheld.demo"

_PULL_EVERY_SECONDS = 5.0

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
        *("--source", str(bundle), "--destination", f"Documents/{bundle.name}"),
    ]


def launch_argv(device: str, app_id: str = APP_ID) -> list[str]:
    """Start the app."""
    return [*_DEVICECTL, "device", "process", "launch", "--device", device, app_id]


def pull_argv(device: str, bundle: str, target: Path, app_id: str = APP_ID) -> list[str]:
    """Copy what the app measured last of a bundle of that name: the file that it would share."""
    return [
        *(*_DEVICECTL, "device", "copy", "from", "--device", device),
        *("--domain-type", "appDataContainer", "--domain-identifier", app_id),
        *("--source", f"tmp/{bundle}.profile.json", "--destination", str(target)),
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


def profile_ios(
    bundle: Bundle,
    *,
    device: str | None = None,
    app_id: str = APP_ID,
    timeout_seconds: float = 1800.0,
    on_ready: Callable[[], None] | None = None,
) -> Profile:
    """Measure a bundle with the app on a connected iPhone. Needs macOS with Xcode, and the app installed.

    Sends the bundle, starts the app, and waits until somebody has measured there: the profile is fetched by itself.

    Args:
        device: name or identifier; None is the only one.
        on_ready: called when the app is started and a person is needed.

    Raises RuntimeMissing elsewhere, saying how to import; RuntimeFailure where devicectl fails, and where nobody
    measured in time.
    """
    if sys.platform != "darwin":
        raise RuntimeMissing(
            "devicectl is a part of Xcode, on macOS. Here: open the bundle in the iOS app, measure it there, share "
            "the profile, and give it with --import."
        )
    folder = bundle.path.resolve()
    with tempfile.TemporaryDirectory(prefix="handheld-") as scratch:
        listed, target = Path(scratch) / "devices.json", Path(scratch) / "profile.json"
        _must(list_argv(listed))
        chosen = choose(parse_devices(listed.read_text(encoding="utf-8")), device)
        pull = pull_argv(chosen, folder.name, target, app_id)
        stale = target.read_bytes() if _run(pull).returncode == 0 else None
        _must(push_argv(chosen, folder, app_id))
        _must(launch_argv(chosen, app_id))
        if on_ready:
            on_ready()
        end = time.monotonic() + timeout_seconds
        while time.monotonic() < end:
            if _run(pull).returncode == 0 and target.read_bytes() != stale:
                return import_profile(target, bundle)
            time.sleep(_PULL_EVERY_SECONDS)
    raise RuntimeFailure(
        f"Nothing was measured in {timeout_seconds:.0f} s. Open {folder.name} in the app, tap Decode and measure, "
        "and start again; or share the profile and give it with --import."
    )


def _must(command: Sequence[str]) -> None:
    done = _run(command)
    if done.returncode:
        raise RuntimeFailure(f"`{' '.join(command[:5])} ...` failed: {(done.stderr or done.stdout).strip()}")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise RuntimeMissing("xcrun is not there: install Xcode.") from error
