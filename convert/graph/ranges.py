"""What a graph's values say about fp16: which leave its range, and which are no numbers in fp32 already.

Seen on the given latents, in fp32: sums inside an op, which runtimes keep in fp32 or not, are not looked into.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ExportError
from .nodes import module_of

# The largest finite fp16.
LARGEST_FP16 = torch.finfo(torch.float16).max

# Values from here on are told too: other latents may be twice as large as those that were looked at.
NEAR = LARGEST_FP16 / 2


@dataclass(frozen=True)
class Beyond:
    """An op whose result fp16 cannot hold, or nearly not.

    Attributes:
        node, op, module: of the rewritten graph; `module` may be empty.
        value: the largest magnitude that was seen, in fp32.
    """

    node: str
    op: str
    module: str
    value: float

    def __str__(self) -> str:
        where = f"{self.op} {self.node}" + (f" of {self.module}" if self.module else "")
        infinite = not self.value <= LARGEST_FP16
        return f"{where} reaches {self.value:.4g}{', infinite in fp16' if infinite else ''}"


def texts(settings: Mapping[str, Any], most: int = 5) -> list[str]:
    """An artefact's `settings["beyond_fp16"]` for people: a line for each of the first `most` ops."""
    found = [Beyond(**one) for one in settings.get("beyond_fp16", ())]
    more = [f"and {len(found) - most} ops more, see the manifest"] if len(found) > most else []
    return [f"Beyond or near the end of fp16's range (65504): {one}" for one in found[:most]] + more


def beyond_fp16(graph: fx.GraphModule, clips: Iterable[tuple[Tensor, ...]]) -> tuple[Beyond, ...]:
    """The ops whose results leave fp16's range, or come within a factor of two of its end, on some clip.

    An op that is given such a value is not named for passing it on.

    Args:
        graph: rewritten, in fp32.
        clips: inputs of the graph, best real ones; each is run once.

    Returns:
        One entry per op, in the graph's order.
    """
    largest: dict[fx.Node, float] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor) and result.is_floating_point() and result.numel():
                value = result.abs().max().item()
                # A NaN is larger than all.
                largest[n] = max(largest.get(n, 0.0), value) if value == value else float("inf")
            return result

    with torch.no_grad():
        for clip in clips:
            Recorder(graph).run(*clip)
    found = [n for n in graph.graph.nodes if n.op != "output" and not largest.get(n, 0.0) < NEAR]
    given = set(found)
    return tuple(
        Beyond(n.name, _op(n), module_of(n), largest[n])
        for n in found
        if not any(x in given for x in n.all_input_nodes)
    )


def _op(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target.overloadpacket.__name__
    return "weight" if node.op == "get_attr" else "input"


def check_finite(model: nn.Module, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> None:
    """Raise ExportError for weights, inputs or outputs that hold NaN or infinity, naming what holds them.

    To be called before any rewrite: what a rewrite makes of NaN says nothing about the rewrite.
    """
    held = [*model.named_parameters(), *model.named_buffers()]
    if wrong := [name for name, tensor in held if tensor.is_floating_point() and not tensor.isfinite().all()]:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ExportError(
            f"The weights {', '.join(wrong[:3])}{more} hold NaN or infinity: the checkpoint is damaged, or "
            "training diverged. Take an earlier one."
        )
    if not all(x.isfinite().all() for x in inputs):
        raise ExportError("The example holds NaN or infinity: give latents of finite values.")
    if not all(y.isfinite().all() for y in outputs):
        raise ExportError(
            "The model's output for the example holds NaN or infinity, though weights and example do not: nothing "
            "can be compared with it. Give latents as the model was trained on, of its mean and spread."
        )
