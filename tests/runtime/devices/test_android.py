"""The whole way over a real adbd on loopback: push, run, pull, clean up; and every way in which it goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from handheld.runtime.comparison import Named, compare
from handheld.runtime.devices.android import profile_android
from handheld.runtime.errors import BundleError, RuntimeFailure
from handheld.runtime.profile_file import read_profile

QUICK = ("--repeat", 3, "--warmup", 1, "--rounds", 2, "--cooldown", 0.1)


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """The folder that stands for /data/local/tmp."""
    folder = tmp_path / "phone"
    folder.mkdir()
    return folder


def test_a_profile_comes_back_from_the_device_and_nothing_stays_there(
    make_bundle: Callable,
    schema_faults: Callable,
    handheld: Callable,
    runner: Path,
    phone: Path,
    tmp_path: Path,
) -> None:
    bundle = make_bundle("android", "onnx")
    out = tmp_path / "out"
    done = handheld(
        *("profile", bundle.path, "--device", "android", "--runner", runner, "--folder", phone, "-o", out, *QUICK)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "android agrees with the golden tensors" in done.stdout
    assert "Measured on an emulated Loopback; says nothing about a phone." in done.stdout
    assert schema_faults(json.loads((out / "profile.json").read_text()), "profile") == []
    profile = read_profile(out / "profile.json")
    device = profile.device
    assert (device.platform, device.model, device.os_version) == (
        "android",
        "Loopback",
        "15",
    )
    assert device.ram_bytes > 1e8
    assert device.emulated is True
    (subject,) = profile.subjects
    assert (subject.artifact, subject.sha256) == ("android", bundle.artifact("android").sha256)
    assert [len(one.latency_ns) for one in subject.rounds] == [3, 3]
    assert min(subject.samples_ns) > 0
    assert len(subject.load_ns) == len(subject.first_run_ns) == 2
    assert subject.peak_growth_bytes > 0
    assert subject.passes is True
    assert subject.parity[0].max_abs_error < 1e-4
    before = subject.rounds[0].before
    assert (before.thermal, before.battery_percent, before.charging) == ("moderate", 87, True)
    assert before.low_power_mode is False
    assert list(phone.iterdir()) == []
    (row,) = compare([Named("phone", profile)])
    assert row.subject.units_per_second > 0


def test_the_runner_for_arm_gives_the_golden_tensors_in_an_emulator(
    make_bundle: Callable,
    schema_faults: Callable,
    handheld: Callable,
    arm_runner: Path,
    phone: Path,
    tmp_path: Path,
) -> None:
    bundle = make_bundle("android")
    out = tmp_path / "out"
    done = handheld(
        *("profile", bundle.path, "-d", "android", "--runner", arm_runner, "--folder", phone, "-o", out, *QUICK),
        abi="arm64-v8a",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "says nothing about a phone" in done.stdout
    assert schema_faults(json.loads((out / "profile.json").read_text()), "profile") == []
    profile = read_profile(out / "profile.json")
    assert (profile.device.architecture, profile.device.emulated) == ("arm64-v8a", True)
    assert profile.subjects[0].passes is True
    other = Path(__file__).resolve().parents[2] / "fixtures" / "profiles" / "android.json"
    shown = handheld("compare", other, out / "profile.json", "--out", tmp_path / "compare.html")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "Loopback" in (tmp_path / "compare.html").read_text()


def test_a_runner_that_is_killed_is_an_error_of_its_record_and_status_1(
    make_bundle: Callable, handheld: Callable, phone: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "runner"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    done = handheld(
        *("profile", make_bundle("android").path, "-d", "android", "--runner", killed, "--folder", phone),
        *("-o", tmp_path / "out", *QUICK),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (subject,) = read_profile(tmp_path / "out" / "profile.json").subjects
    assert "killed the runner (SIGKILL): most likely out of memory" in subject.error
    assert (subject.rounds, subject.parity) == ((), None)
    assert list(phone.iterdir()) == []


def test_a_model_that_is_none_gets_the_runners_own_words(
    make_bundle: Callable, handheld: Callable, runner: Path, phone: Path, tmp_path: Path
) -> None:
    bundle = make_bundle(models={"android": b"no program"})
    done = handheld(
        *("profile", bundle.path, "-d", "android", "--runner", runner, "--folder", phone, "-o", tmp_path / "out")
    )
    assert done.returncode == 1
    (subject,) = read_profile(tmp_path / "out" / "profile.json").subjects
    assert "handheld_runner: loading" in subject.error


def test_a_full_device_is_named_before_anything_is_measured(
    make_bundle: Callable, handheld: Callable, phone: Path, tmp_path: Path
) -> None:
    big = tmp_path / "runner"
    big.write_bytes(b"#!/bin/sh\n" + b"#" * 200_000)
    done = handheld(
        *("profile", make_bundle("android").path, "-d", "android", "--runner", big, "--folder", phone),
        *("-o", tmp_path / "out", *QUICK),
        small=phone,
    )
    assert done.returncode == 1
    assert "127.0.0.1:5555 is out of space" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("serials", "extra", "says"),
    [
        ("", (), "adb sees no device"),
        ("127.0.0.1:5555 localhost:5555", (), "adb sees several devices"),
        ("127.0.0.1:5555", ("--serial", "R5CT"), "No device R5CT"),
    ],
)
def test_none_several_and_unknown_devices_are_messages(
    make_bundle: Callable, handheld: Callable, tmp_path: Path, serials: str, extra: tuple, says: str
) -> None:
    (tmp_path / "runner").write_text("#!/bin/sh\n")
    done = handheld(
        *("profile", make_bundle("android").path, "-d", "android", "--runner", tmp_path / "runner", *extra),
        serials=serials,
    )
    assert done.returncode == 1
    assert says in done.stderr


def test_a_runner_of_another_version_is_refused(
    make_bundle: Callable, handheld: Callable, phone: Path, tmp_path: Path
) -> None:
    old = tmp_path / "runner"
    old.write_text('#!/bin/sh\necho \'{"runner_version": 0}\' > "$6"\n')
    done = handheld(
        *("profile", make_bundle("android").path, "-d", "android", "--runner", old, "--folder", phone, *QUICK)
    )
    assert done.returncode == 1
    assert "The runner wrote what this handheld does not understand" in done.stderr
    assert list(phone.iterdir()) == []


def test_what_is_wrong_here_is_said_before_a_device_is_asked(make_bundle: Callable, tmp_path: Path) -> None:
    bundle = make_bundle("android", "onnx")
    runner = tmp_path / "runner"
    with pytest.raises(RuntimeFailure, match=r"runner is no file: give the runner"):
        profile_android(bundle, runner)
    runner.write_text("")
    with pytest.raises(RuntimeFailure, match=r"takes artefacts of the runtime executorch"):
        profile_android(bundle, runner, artifacts=[bundle.artifact("onnx")])
    with pytest.raises(RuntimeFailure, match="at least 1"):
        profile_android(bundle, runner, repeat=0)
    (bundle.path / bundle.artifact("android").path).write_bytes(b"x")
    with pytest.raises(BundleError, match="is truncated"):
        profile_android(bundle, runner)
