"""Weights of 8, 6 and 4 bits in a Core AI program, by coreai-opt.

coreai-opt passes over a weight that it cannot make small, and only logs that. What was compressed is therefore
counted afterwards, in the program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from ..errors import ExportError
from ..graph.nodes import constant_of, is_constant

# Weights per tensor: up to so many stay in fp16. A table of 256 values would be a large part of what it replaces.
LARGEST_UNCOMPRESSED = 10_000

# Operations that expand a small weight: an integer with its scale, an index into a table.
_EXPANDING = ("blockwise_shift_scale", "lut_to_dense")


def compressed(program: Any, precision: str) -> Any:
    """A program, its large weights quantised or palettised as the precision says; as it is for fp16 and fp32.

    `int8` and `int4` are linear and symmetric, with a scale per output channel: a channel's weights need no certain
    number, as those of a block do. `pal8`, `pal6` and `pal4` are tables of 256, 64 or 16 values per tensor.
    """
    if precision.startswith("fp"):
        return program
    from coreai_opt.coreai_utils import DType, palettize_weights, quantize_weights

    least = LARGEST_UNCOMPRESSED
    if precision.startswith("int"):
        return quantize_weights(
            program, {"int8": DType.INT8, "int4": DType.INT4}[precision], weight_num_threshold=least, in_place=True
        )
    return palettize_weights(
        program,
        None,
        n_bits=int(precision[3:]),
        weight_num_threshold=least,
        # In this process: k-means of one tensor takes less than the start of another.
        num_kmeans_workers=1,
        # The fast mode rounds weights to four decimals before, which is coarse for a layer of small weights.
        enable_fast_kmeans_mode=False,
        in_place=True,
    )


def account(
    precision: str,
    graphs: Sequence[fx.GraphModule],
    operations: Mapping[str, int],
    stored: Sequence[tuple[str, int]],
) -> dict[str, Any]:
    """What was really compressed, for the manifest.

    Args:
        graphs: that were converted, one a function.
        operations: how many of each kind the program has.
        stored: values by the type that they are stored in.

    Returns:
        large: tensors of more than `LARGEST_UNCOMPRESSED` weights. compressed: how many were. stored: values by
        type.

    Raises ExportError where a precision of fewer bits left most of those weights as they were.
    """
    sizes = [size for graph in graphs for size in _large_weights(graph)]
    done = sum(operations.get(kind, 0) for kind in _EXPANDING)
    values = dict(stored)
    if not precision.startswith("fp"):
        small = values.get(f"{'UInt' if precision.startswith('pal') else 'Int'}{precision[3:]}", 0)
        # Functions store equal weights once.
        most = max((sum(_large_weights(graph)) for graph in graphs), default=0)
        if small < most / 2:
            raise ExportError(
                f"Of {len(sizes)} large weights {done} were compressed to {precision}, {small / most:.0%} of the "
                "values: coreai-opt compresses those of 2D convolutions and matrix products only. Leave the "
                "rewrites in that make 2D convolutions of 3D ones, or take fp16."
            )
    return {"large": len(sizes), "compressed": done, "stored": values}


def _large_weights(graph: fx.GraphModule) -> list[int]:
    """Sizes of the weights that are large enough to be compressed."""
    names = {str(node.target): node for node in graph.graph.nodes if is_constant(node)}
    tensors = map(constant_of, names.values())
    return [t.numel() for t in tensors if t.is_floating_point() and t.numel() > LARGEST_UNCOMPRESSED]
