"""Weights of 8, 6 and 4 bits in a Core ML program, by coremltools.

coremltools passes over a weight that it cannot make small, and only logs that. What was compressed is therefore
counted afterwards, in the program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..errors import ExportError
from ..precision.palette import palettise
from ..precision.schemes import LARGEST_UNCOMPRESSED, SCHEMES, Scheme

_EXPANDS_A_TABLE = "constexpr_lut_to_dense"


def compressed(model: Any, precision: str) -> Any:
    """The model with its large weights quantised or palettised, as the precision says; as it is for fp16 and fp32.

    Raises ExportError where coremltools left a weight as it was.
    """
    import coremltools.optimize.coreml as optimize

    scheme = SCHEMES[precision]
    if scheme.kind == "linear":
        linear = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=LARGEST_UNCOMPRESSED)
        return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(linear))
    return model if scheme.kind == "float" else palettised(model, dict.fromkeys(large_weights(model), scheme))


def large_weights(model: Any) -> dict[str, Any]:
    """What coremltools tells of the weights large enough to be compressed, by their name in the program."""
    import coremltools.optimize.coreml as optimize

    return dict(optimize.get_weights_metadata(model, weight_threshold=LARGEST_UNCOMPRESSED))


def palettised(model: Any, schemes: dict[str, Scheme]) -> Any:
    """The model with tables in place of weights, each by its own scheme; other weights stay in fp16."""
    import coremltools.optimize.coreml as optimize

    weights = large_weights(model)
    configs = {name: _config(scheme, weights[name]) for name, scheme in schemes.items() if scheme.kind == "palette"}
    if not configs:
        return model
    model = optimize.palettize_weights(model, optimize.OptimizationConfig(op_name_configs=configs))
    functions = model.get_spec().mlProgram.functions.values()
    blocks = [block for function in functions for block in function.block_specializations.values()]
    made = sum(op.type == _EXPANDS_A_TABLE for block in blocks for op in block.operations)
    if made != len(configs):
        raise ExportError(f"Of {len(configs)} weights coremltools palettised {made}. Please report it.")
    return model


def _config(scheme: Scheme, weight: Any) -> Any:
    """coremltools' configuration of one weight. The tables are ours: its own k-means wants scikit-learn."""
    import coremltools.optimize.coreml as optimize

    # Other operations have their output channels on another axis.
    rows = all(op.op_type in ("conv", "linear") for op in weight.child_ops)
    grouped = rows and scheme.tables(weight.val.shape[0]) > 1
    groups = {"granularity": "per_grouped_channel", "group_size": scheme.group} if grouped else {}
    return optimize.OpPalettizerConfig(
        mode="custom", lut_function=_table(scheme.bits), weight_threshold=LARGEST_UNCOMPRESSED, **groups
    )


def _table(bits: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def table(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The values of one table, and an index a value, flat."""
        found = palettise(torch.from_numpy(np.ascontiguousarray(values)).reshape(1, -1), bits)
        return found.tables[0].numpy(), found.indices.numpy().reshape(-1)

    return table
