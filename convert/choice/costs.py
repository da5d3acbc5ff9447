"""What an op of a graph costs on a runtime: a linear model, from a table of rates that were measured or reasoned.

The model serves one purpose: to rank equivalent lowerings of one layer. Its unit is nanoseconds on the machine
where the table was measured. Users are shown ratios only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from torch import fx

from handheld.runtime import parsing

from ..errors import ExportError
from ..graph.cost import activations_read, elements_of, multiply_adds_of
from ..graph.nodes import argument, is_call, is_constant, shape_of
from ..graph.ops import CONVOLUTIONS, JOINS, PARTS, PERMUTATIONS, PRODUCTS, relabels

FORMAT_VERSION = 1

# What a table has a row for. Any other op counts as elementwise.
KINDS = ("conv", "grouped_conv", "depthwise_conv", "pointwise_conv", "matmul", "elementwise", "copy")


@dataclass(frozen=True)
class Features:
    """What the model knows of one call.

    Attributes:
        multiply_adds: of a convolution or product.
        elements: of the activations that it reads and writes.
        weights: elements of the constants that it reads.
    """

    multiply_adds: int
    elements: int
    weights: int


@dataclass(frozen=True)
class OpRates:
    """Nanoseconds per call, multiply-add, element read or written, and weight read."""

    call_ns: float
    multiply_add_ns: float
    element_ns: float
    weight_ns: float

    def cost_ns(self, of: Features) -> float:
        return (
            self.call_ns
            + self.multiply_add_ns * of.multiply_adds
            + self.element_ns * of.elements
            + self.weight_ns * of.weights
        )


@dataclass(frozen=True)
class CostTable:
    """Rates of one runtime.

    Attributes:
        runtime: whose ops these are.
        source: where the rates come from: the machine on which they were measured, or the rules that gave them.
        channel_block: how many output channels a convolution computes together. A block that is not full costs as
            much as a full one.
        rates: by kind, one of KINDS.
    """

    runtime: str
    source: str
    channel_block: int
    rates: Mapping[str, OpRates]

    def cost_ns(self, node: fx.Node) -> float:
        """Modelled time of one node; 0 for views and for what is no call."""
        kind = kind_of(node)
        return self.rates[kind].cost_ns(features_of(node, self.channel_block)) if kind else 0.0

    def total_ns(self, nodes: Iterable[fx.Node]) -> float:
        return sum(self.cost_ns(node) for node in nodes)

    def to_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1) + "\n"


def kind_of(node: fx.Node) -> str | None:
    """Row of the table for a node; None where it costs nothing.

    A change of layout costs nothing here: `cancel_layouts` removes most of them, in pairs.
    """
    if node.op != "call_function" or relabels(node) or is_call(node, *PERMUTATIONS):
        return None
    if is_call(node, *CONVOLUTIONS):
        weight, groups = shape_of(node.args[1]), argument(node, 6)
        if weight[1] == 1 and groups == weight[0]:
            return "depthwise_conv"
        if groups > 1:
            return "grouped_conv"
        return "pointwise_conv" if math.prod(weight[2:]) == 1 else "conv"
    if is_call(node, *PRODUCTS):
        return "matmul"
    return "copy" if is_call(node, *PARTS, *JOINS) else "elementwise"


def features_of(node: fx.Node, channel_block: int = 1) -> Features:
    """Size of a call, output channels of convolutions rounded up to `channel_block`."""
    elements = elements_of(node) + sum(map(elements_of, activations_read(node)))
    weights = sum(elements_of(one) for one in node.all_input_nodes if is_constant(one))
    return Features(multiply_adds_of(node, out_block=channel_block), elements, weights)


_RATES = parsing.record(
    OpRates, {name: parsing.number(0) for name in ("call_ns", "multiply_add_ns", "element_ns", "weight_ns")}
)
_TEXT = parsing.text()


def read_table(path: Path) -> CostTable:
    """A table that `handheld tune` wrote, or a shipped one. Raises ExportError saying what is wrong with it."""
    try:
        tree = parsing.load_json(path.read_text())
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} is no readable cost table: {error}. Make one with `handheld tune`.") from error
    version = tree.pop("format_version", None) if isinstance(tree, dict) else None
    if version != FORMAT_VERSION:
        raise ExportError(
            f"{path} has format_version {version!r}; this handheld reads cost tables of version {FORMAT_VERSION}. "
            "Make one with `handheld tune`."
        )
    faults: list[str] = []
    table = parsing.record(
        CostTable,
        {
            "runtime": _TEXT,
            "source": _TEXT,
            "channel_block": parsing.integer(1),
            "rates": parsing.mapping(_RATES),
        },
    )(tree, "", faults)
    if not faults and set(table.rates) != set(KINDS):
        faults.append(f"rates has {', '.join(sorted(table.rates))}; wanted {', '.join(sorted(KINDS))}")
    if faults:
        raise ExportError(f"{path} is no cost table:\n" + "\n".join(f"  {fault}" for fault in faults))
    return table


@cache
def shipped_table(name: str) -> CostTable:
    """A table that comes with the package, `convert/choice/tables/<name>.json`."""
    return read_table(Path(__file__).parent / "tables" / f"{name}.json")
