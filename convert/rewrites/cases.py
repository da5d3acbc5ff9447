"""Small modules that the rewrites' cases share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Lambda(nn.Module):
    """A module around a function of one tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def of(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Builder of a module around `function`."""
    return lambda: Lambda(function)


def conv3d(*args: Any, padding: Any = (0, 1, 1), **kwargs: Any) -> Callable[[], nn.Module]:
    """Builder of a Conv3d, padded in space only unless told otherwise."""
    return lambda: nn.Conv3d(*args, padding=padding, **kwargs)
