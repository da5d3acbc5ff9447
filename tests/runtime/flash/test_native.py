"""The native tests, from where the install or `make flash` built them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]


def test_native_tests_pass() -> None:
    program = REPO / "build/flash/native_tests/flash_native_tests"
    if not program.exists():
        pytest.skip(f"needs {program}, which `pip install -e .` builds where there is a C++ compiler")
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
