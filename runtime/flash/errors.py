"""The error that the native engine raises."""

from __future__ import annotations

from ..errors import RuntimeFailure


class FlashError(RuntimeFailure):
    """A pack or a call that the engine refuses, or a read that failed.

    `status` is the name in flash.h, such as `HH_FLASH_BUDGET`.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status
