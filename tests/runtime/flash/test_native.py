"""The native tests, from where the install or `make flash` built them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]


def test_native_tests_pass() -> None:
    built = sorted(
        (REPO / "build").glob("flash*/native_tests/flash_native_tests"), key=lambda path: path.stat().st_mtime
    )
    plain = [path for path in built if path.parts[-3] in ("flash", "flash-in-place")]
    if not plain:
        pytest.skip("needs build/flash/native_tests, which `pip install -e .` builds where there is a C++ compiler")
    done = subprocess.run([plain[-1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
