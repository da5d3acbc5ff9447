"""Which convolutions are quantised, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from ..graph.nodes import argument, is_call, is_constant, shape_of
from ..graph.ops import MOVES, aten


@dataclass(frozen=True)
class Exemption:
    """A kind of convolution that stays in floating point.

    Attributes:
        reason: what was measured that says so.
        applies: to a conv2d node.
    """

    reason: str
    applies: Callable[[fx.Node], bool]


@dataclass(frozen=True)
class QuantizationPlan:
    """The convolutions of a graph, in its order.

    Attributes:
        quantized: nodes.
        kept: how many stay in floating point, by reason.
    """

    quantized: tuple[fx.Node, ...]
    kept: dict[str, int]

    def record(self, clips: int) -> dict[str, Any]:
        """What the manifest says of a quantisation that was calibrated on so many clips."""
        return {"convolutions": len(self.quantized), "kept_in_fp32": self.kept, "calibration_clips": clips}


def moved(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node that only moves data: what it gives has the quantisation of its inputs. Else nothing."""
    return node.all_input_nodes if is_call(node, *MOVES) else []


def roots(node: fx.Node) -> tuple[fx.Node, ...]:
    """The tensors from which a node's values come, through ops that only move data."""
    if not moved(node):
        return (node,)
    return tuple(dict.fromkeys(root for x in moved(node) for root in roots(x)))


def _computed(node: fx.Node) -> bool:
    return not is_constant(argument(node, 1))


def _grouped(node: fx.Node) -> bool:
    return argument(node, 6) != 1


def _is_mean(node: fx.Node) -> bool:
    return shape_of(node)[1] == 1


def _reads_latents(node: fx.Node) -> bool:
    return any(root.op == "placeholder" for root in roots(argument(node, 0)))


# Ops that may stand between the convolution that makes the frames and the output, besides those that move data:
# they add time taps, or combine frames as Winograd's form does.
_COMBINES = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.matmul.default)


def _makes_frames(node: fx.Node) -> bool:
    passes = (user for user in node.users if moved(user) or is_call(user, *_COMBINES))
    return any(user.op == "output" for user in node.users) or any(map(_makes_frames, passes))


# PSNR of the tiny student, distilled, on real latents, as ONNX: 55.6 dB with all of these in fp32.
EXEMPTIONS = (
    Exemption("its weight is computed, not a constant", _computed),
    Exemption("reads the latents: under 3% of the multiply-adds, and 1.9 dB of PSNR", _reads_latents),
    Exemption("makes the frames: about 1% of the multiply-adds, and 2.8 dB of PSNR", _makes_frames),
    Exemption("depthwise or grouped: bound by memory, 0.85 times the speed in 8 bits", _grouped),
    Exemption("one output channel: the mean of a norm, which scales all that is behind it", _is_mean),
)


def convolutions(graph: fx.GraphModule) -> QuantizationPlan:
    """Choose among the conv2d nodes of a rewritten graph: all that no exemption applies to."""
    quantized = []
    kept: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if not is_call(node, aten.conv2d.default):
            continue
        reason = next((entry.reason for entry in EXEMPTIONS if entry.applies(node)), None)
        if reason is None:
            quantized.append(node)
        else:
            kept[reason] += 1
    return QuantizationPlan(tuple(quantized), dict(kept))
