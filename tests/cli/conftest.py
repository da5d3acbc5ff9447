"""Fixtures of the command line's tests."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from handheld.cli import main


@pytest.fixture
def handheld(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["handheld", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        text = capfd.readouterr()
        return status, text.out, text.err

    return run
