"""Choosing a device and saying why it cannot be used, on what adb prints."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from handheld.runtime.devices.adb import Adb, Reply, choose, parse_devices
from handheld.runtime.devices.android import _death
from handheld.runtime.errors import RuntimeFailure, RuntimeMissing

PRINTED = """* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
R5CT\tdevice
emulator-5554\toffline
0A1B\tunauthorized
9C\tno permissions (missing udev rules? user is in the plugdev group); see [http://developer.android.com]

"""


def test_what_adb_prints_is_parsed() -> None:
    states = parse_devices(PRINTED)
    assert list(states) == ["R5CT", "emulator-5554", "0A1B", "9C"]
    assert states["R5CT"] == "device"
    assert states["9C"].startswith("no permissions")
    assert parse_devices("List of devices attached\n\n") == {}


def test_the_only_usable_device_is_taken_and_a_named_one_before_it() -> None:
    states = parse_devices(PRINTED)
    assert choose(states, None) == "R5CT"
    assert choose({"a": "device", "b": "device"}, "b") == "b"


@pytest.mark.parametrize(
    ("states", "serial", "says"),
    [
        ({}, None, "adb sees no device. Connect a phone"),
        (
            {"a": "device", "b": "device"},
            None,
            r"several devices: a \(device\), b \(device\). Choose",
        ),
        ({"a": "unauthorized"}, None, "a is unauthorized: it has not authorised this machine: unlock it"),
        ({"a": "offline", "b": "device"}, "a", "a is offline: it does not answer"),
        ({"a": "no permissions; see http"}, None, "udev rules"),
        ({"a": "host"}, None, "a is host: adb cannot use it"),
        ({"a": "device"}, "b", r"No device b; adb sees a \(device\)."),
    ],
)
def test_a_device_that_cannot_be_used_is_a_message(states: dict[str, str], serial: str | None, says: str) -> None:
    with pytest.raises(RuntimeFailure, match=says):
        choose(states, serial)


def test_without_adb_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeMissing, match="Install Android's platform tools"):
        Adb.find()


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(137, "", "Killed"), "most likely out of memory"),
        (Reply(139, "", ""), "died of SIGSEGV"),
        (Reply(134, "", "check failed"), "died of SIGABRT. It wrote: check failed"),
        (Reply(1, "", "handheld_runner: model cannot be read"), "model cannot be read"),
        (Reply(126, "", ""), "exited with 126"),
    ],
)
def test_the_end_of_a_runner_is_named(reply: Reply, says: str) -> None:
    assert says in _death(reply)


def test_exit_codes_and_quoting_survive_a_real_daemon(
    loopback: Callable,
) -> None:
    done = loopback("adb", "shell", "echo 'a  b'; exit 7")
    assert (done.returncode, done.stdout) == (7, "a  b\n"), done.stderr
