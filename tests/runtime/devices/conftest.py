"""A real adbd on loopback, in a network namespace of its own, and a runner built for this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# What a phone answers and a Linux machine does not have: on adbd's PATH.
SHIMS = {
    "getprop": """
case "$1" in
  ro.product.model) echo "Loopback" ;;
  ro.soc.model) echo "None" ;;
  ro.product.cpu.abi) echo "$ABI" ;;
  ro.build.version.release) echo "15" ;;
  ro.boot.qemu) echo 1 ;;
esac
""",
    "dumpsys": """
case "$1" in
  thermalservice) printf 'IsStatusOverride: false\\nThermal Status: 2\\n' ;;
  battery) printf '  AC powered: false\\n  USB powered: true\\n  level: 87\\n' ;;
esac
""",
    "settings": "echo 0\n",
}

# Starts the daemon, connects as often as asked, runs the command, and ends what it started.
SCRIPT = """
set -u
ip link set lo up
if [ -n "$SMALL" ]; then mount -t tmpfs -o size=64k tmpfs "$SMALL"; fi
PATH="$SHIMS:$PATH" adbd >"$HOME/adbd.log" 2>&1 &
daemon=$!
trap 'adb kill-server >/dev/null 2>&1; kill $daemon 2>/dev/null' EXIT
for serial in $SERIALS; do
  for _ in $(seq 100); do
    adb connect "$serial" 2>&1 | grep -q "^\\(already \\)\\?connected" && break
    sleep 0.1
  done
done
"$@"
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`loopback(*command, serials="127.0.0.1:5555", small=None, abi="x86_64")` runs a command beside that daemon.

    `small` is a folder to mount a file system of 64 KB on, `abi` what the device says that it is.
    """
    if missing := [name for name in ("adb", "adbd", "unshare", "ip") if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)} on the PATH")
    home = tmp_path_factory.mktemp("adb")
    for name, body in SHIMS.items():
        (home / "shims").mkdir(exist_ok=True)
        (home / "shims" / name).write_text("#!/bin/sh\n" + body)
        (home / "shims" / name).chmod(0o755)
    apart = ["unshare", "--net", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("needs leave to make network and mount namespaces (unshare --net --mount)")

    def run(
        *command: object, serials: str = "127.0.0.1:5555", small: Path | None = None, abi: str = "x86_64"
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "HOME": str(home),
            "SHIMS": str(home / "shims"),
            "SERIALS": serials,
            "SMALL": str(small or ""),
            "ABI": abi,
            "ADB_EMU": "0",  # no search for emulators, which would find this daemon again
        }
        return subprocess.run(
            [*apart, "bash", "-c", SCRIPT, "loopback", *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runtime/runner, built against the installed wheel."""
    executorch = pytest.importorskip("executorch")
    cmake = shutil.which("cmake")
    said = subprocess.run([cmake, "--version"], capture_output=True, text=True).stdout if cmake else ""
    version = re.search(r"(\d+)\.(\d+)", said)
    if not version or tuple(map(int, version.groups())) < (3, 28):
        pytest.skip("needs CMake 3.28 or newer on the PATH (pip install cmake)")
    build = tmp_path_factory.mktemp("runner")
    prefix = Path(next(iter(executorch.__path__)))
    for command in (
        ["-S", ROOT / "runtime" / "runner", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"],
        ["--build", build],
    ):
        done = subprocess.run([cmake, *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "handheld_runner"


@pytest.fixture
def arm_runner() -> Path:
    """The same for ARM64, in an emulator."""
    runner = ROOT / "build" / "runner-arm" / "run"
    if not runner.exists():
        pytest.skip("the runner for ARM64 is not built: run `make runner-arm`")
    return runner


@pytest.fixture
def handheld(loopback: Run) -> Run:
    """The command line beside the daemon."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return loopback(sys.executable, "-m", "handheld.cli", *arguments, **options)

    return run
