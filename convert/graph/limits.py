"""What a limit of a runtime is. The limits themselves are facts, one file per runtime:
`convert/<runtime>/*limits.py`.

Such a file has a function `limits(node, dtype) -> Limit | None`. It says why its runtime does not take an op of a
captured graph, or takes it badly; None means that the op is taken. Graphs are captured in fp32, and `dtype` is what
the artefact will compute in. A target names its function in `Target.limits`. `tests/convert/test_limits.py`
compares each with the runtime's own converter or partitioner, on graphs of one op.

No runtime is imported: `handheld check` needs torch only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from .nodes import argument, is_call

aten = torch.ops.aten

Severity = Literal["refused", "outside", "inexact", "slow", "device"]


@dataclass(frozen=True)
class Limit:
    """Why a runtime does not take a node, or takes it badly.

    Attributes:
        severity: "refused": the model does not lower, or the artefact fails when it runs. "outside": left to the
            runtime's portable kernels, which splits the delegate. "inexact": overflows or rounds to zero. "slow":
            runs, but not where or how the hardware is fast. "device": not on every device that has the runtime.
        reason: one clause.
        source: where that is known from.
    """

    severity: Severity
    reason: str
    source: str

    @property
    def blocks(self) -> bool:
        """Whether an artefact with such a node is of no use on any device."""
        return self.severity not in ("slow", "device")


Limits = Callable[[fx.Node, torch.dtype], Limit | None]

_FP16 = "IEEE 754 binary16: largest 65504, smallest above zero 6e-8"


def half_precision(node: fx.Node, dtype: torch.dtype) -> Limit | None:
    """What fp16 cannot hold, on any runtime."""
    if dtype != torch.float16:
        return None
    if is_call(node, aten.pow.Tensor_Scalar) and argument(node, 1) >= 2:
        power = argument(node, 1)
        return Limit("inexact", f"x^{power} is infinite from |x| = {math.ceil(65520 ** (1 / power))} on", _FP16)
    if is_call(node, aten.add.Tensor) and _is_number(node.args[1]) and 0 < abs(node.args[1]) <= 2**-25:
        return Limit("inexact", f"{node.args[1]:g} rounds to zero", _FP16)
    return None


def tensors(node: fx.Node) -> list[Tensor]:
    """Meta tensors of what a node takes and gives."""
    values = [n.meta.get("val") for n in (*node.all_input_nodes, node)]
    return [t for v in values for t in (v if isinstance(v, tuple | list) else (v,)) if isinstance(t, Tensor)]


def rank(node: fx.Node) -> int:
    """Highest rank of any tensor that a node takes or gives."""
    return max((t.ndim for t in tensors(node)), default=0)


def axes(node: fx.Node) -> list[int]:
    """Axes over which a reduction runs, from 0; all of them where it names none."""
    ndim = node.args[0].meta["val"].ndim
    named = argument(node, 1)
    named = [named] if isinstance(named, int) else named
    return sorted(axis % ndim for axis in named) if named else list(range(ndim))


def computed_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """A tensor's dtype in the artefact: fp32 becomes what the artefact computes in."""
    return dtype if tensor.dtype == torch.float32 else tensor.dtype


def has_number(node: fx.Node) -> bool:
    """Whether one of the first two operands is a bare number."""
    return any(_is_number(value) for value in node.args[:2])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
