"""Frames that wait in a temporary file."""

from __future__ import annotations

import tempfile
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError


class Spool:
    """Tensors written one after the other, and read in that order. Its file goes when it is left."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="handheld-")  # noqa: SIM115  closed in __exit__
        self._written: list[tuple[torch.Size, torch.dtype, torch.device]] = []
        self._read = 0

    def write(self, x: Tensor) -> None:
        """Append a tensor. Raises ModelError where the temporary folder does not take it."""
        values = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()  # bytes: numpy has no bfloat16
        try:
            self._file.write(values.data)
            self._file.flush()
        except OSError as error:
            raise ModelError(
                f"Strips wait in {tempfile.gettempdir()}, which does not take {values.nbytes} bytes more: "
                f"{error.strerror}. Make room, point TMPDIR elsewhere, or decode in one strip."
            ) from error
        self._written.append((x.shape, x.dtype, x.device))

    def read(self) -> Tensor:
        """The next tensor, from the first one on; all must have been written."""
        if not self._read:
            self._file.seek(0)
        shape, dtype, device = self._written[self._read]
        self._read += 1
        values = np.fromfile(self._file, np.uint8, shape.numel() * dtype.itemsize)
        return torch.from_numpy(values).view(dtype).reshape(shape).to(device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
