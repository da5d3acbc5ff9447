"""adb, as far as measuring needs it: find one device, run commands, move files, and say clearly what went wrong."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import RuntimeFailure, RuntimeMissing

_INSTALL = (
    "adb is not on the PATH. Install Android's platform tools (package `adb`, or Android Studio's SDK manager)."
)

# What adb and its daemon print where a file system is full.
_FULL = ("no space left", "enospc", "not enough space")

# What `adb devices` says of a device that cannot be used, and what to do.
_UNUSABLE = {
    "unauthorized": "it has not authorised this machine: unlock it and accept the question about USB debugging",
    "authorizing": "it is about to authorise this machine: unlock it, accept the question, try again",
    "offline": "it does not answer: reconnect the cable, or run `adb reconnect`",
    "no permissions": "this user may not open it: add the udev rules of Android devices, or the group `plugdev`",
    "bootloader": "it stands in its bootloader: start Android",
    "recovery": "it stands in recovery: start Android",
    "sideload": "it stands in sideload mode: start Android",
}


@dataclass(frozen=True)
class Reply:
    """What a command on the device gave."""

    status: int
    out: str
    err: str


class Adb:
    """One device. `Adb.find` chooses it."""

    def __init__(self, serial: str, program: str) -> None:
        self.serial = serial
        self._program = program

    @classmethod
    def find(cls, serial: str | None = None) -> Adb:
        """The device of that serial, or the only one that is there.

        Raises RuntimeMissing without adb; RuntimeFailure for no device, several, one that cannot be used, and a
        serial that is not there, each with what is there and what to do.
        """
        program = shutil.which("adb")
        if program is None:
            raise RuntimeMissing(_INSTALL)
        listed = _call([program, "devices"], timeout=30)
        if listed.status:
            raise RuntimeFailure(f"`adb devices` failed: {listed.err.strip() or listed.out.strip()}")
        devices = parse_devices(listed.out)
        return cls(choose(devices, serial), program)

    def shell(self, command: Sequence[str], timeout: float | None = 60) -> Reply:
        """Run a command on the device; its arguments are quoted for the device's shell.

        Raises RuntimeFailure where the device goes away or does not answer in time.
        """
        return self._run(["shell", shlex.join(command)], timeout)

    def push(self, source: Path, target: str) -> None:
        """Copy a file to the device. Raises RuntimeFailure, naming a full device as such."""
        self._moved(self._run(["push", str(source), target], timeout=None), f"{source.name} to {target}")

    def pull(self, source: str, target: Path) -> None:
        """Copy a file from the device. Raises RuntimeFailure."""
        self._moved(self._run(["pull", source, str(target)], timeout=None), f"{source} from the device")

    def _moved(self, reply: Reply, what: str) -> None:
        if reply.status:
            said = (reply.err + reply.out).strip()
            if any(word in said.lower() for word in _FULL):
                raise RuntimeFailure(
                    f"{self.serial} is out of space: copying {what} failed. Free some and try again."
                )
            raise RuntimeFailure(f"{self.serial}: copying {what} failed: {said}")

    def _run(self, arguments: Sequence[str], timeout: float | None) -> Reply:
        reply = _call([self._program, "-s", self.serial, *arguments], timeout)
        if reply.status and reply.err.startswith(("adb: ", "error: ")) and "device" in reply.err:
            gone = ("device offline", "device not found", "not found", "no devices", "unauthorized", "closed")
            if any(word in reply.err for word in gone) and "adb: error: failed to copy" not in reply.err:
                raise RuntimeFailure(f"{self.serial} is gone: {reply.err.strip()}. Reconnect it and start again.")
        return reply


def parse_devices(text: str) -> dict[str, str]:
    """Serial to state, from what `adb devices` prints."""
    lines = text.partition("List of devices attached")[2].splitlines()
    pairs = [line.partition("\t") for line in lines if "\t" in line]
    return {serial.strip(): state.strip() for serial, _, state in pairs}


def choose(devices: dict[str, str], serial: str | None) -> str:
    """The serial to use. Raises RuntimeFailure saying what there is and what to do."""
    there = ", ".join(f"{name} ({state})" for name, state in devices.items())
    if serial is not None:
        if serial not in devices:
            raise RuntimeFailure(f"No device {serial}; adb sees {there or 'none'}.")
        chosen = serial
    elif not devices:
        raise RuntimeFailure(
            "adb sees no device. Connect a phone by cable with USB debugging on (Settings, developer options), or "
            "`adb connect HOST:PORT`."
        )
    else:
        ready = [name for name, state in devices.items() if state == "device"]
        if len(ready) > 1 or (not ready and len(devices) > 1):
            raise RuntimeFailure(f"adb sees several devices: {there}. Choose one with --serial.")
        chosen = ready[0] if ready else next(iter(devices))
    state = devices[chosen]
    if state != "device":
        why = next((text for word, text in _UNUSABLE.items() if state.startswith(word)), "adb cannot use it")
        raise RuntimeFailure(f"{chosen} is {state}: {why}.")
    return chosen


def _call(command: Sequence[str], timeout: float | None) -> Reply:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise RuntimeFailure(
            f"`{shlex.join(command[1:])}` has not answered for {timeout:.0f} s. Reconnect the device, or "
            "restart adb with `adb kill-server`."
        ) from None
    return Reply(done.returncode, done.stdout, done.stderr)
