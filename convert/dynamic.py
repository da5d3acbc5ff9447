"""Graphs whose sizes are symbols: one graph for any number of frames, height and width.

The rewrites need fixed sizes: which places they apply to, what they put there and what the cost tables say follow
from the numbers. So a dynamic graph is the one that torch.export makes, as captured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from .errors import ExportError


@dataclass(frozen=True)
class Dynamic:
    """A captured graph with symbolic sizes.

    Attributes:
        graph: fp32, nothing rewritten.
        axes: of the latents, by number, that are symbols.
    """

    graph: fx.GraphModule
    axes: tuple[int, ...]

    def letters(self, layout: str) -> tuple[str, ...]:
        """The axes by their letters in a layout: T, H, W."""
        return tuple(layout[axis] for axis in self.axes)


def capture_dynamic(model: nn.Module, latents: Tensor) -> Dynamic:
    """Export a model with time, height and width as symbols; an axis that the model fixes stays fixed.

    Sizes of 1 are fixed too: torch.export takes them for constants.

    Raises ExportError for a model that torch.export refuses, and where no axis is left to vary.
    """
    wanted = {axis: Dim.AUTO for axis in range(2, latents.ndim)}
    program = exported(model, latents, wanted)
    (shape,) = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    axes = tuple(axis for axis in wanted if _is_symbol(shape[axis]))
    if not axes:
        raise ExportError(
            f"No size of {type(model).__name__} can vary from the example {tuple(latents.shape)}: the model fixes "
            "them, or they are 1, which torch.export takes for constants. Give a larger example, or export once "
            "per shape with --shape."
        )
    return Dynamic(program.module(check_guards=False), axes)  # type: ignore[arg-type]


def _is_symbol(size: int | torch.SymInt) -> bool:
    """Whether a size may vary: a symbol that the model's weights tie to one number may not."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def exported(model: nn.Module, latents: Tensor, axes: dict[int, Any]) -> torch.export.ExportedProgram:
    """`torch.export.export` with these axes of the latents as symbols. Raises ExportError where it refuses."""
    try:
        with torch.no_grad():
            return torch.export.export(model.eval(), (latents,), dynamic_shapes=(axes,))
    except Exception as error:
        raise ExportError(
            f"torch.export does not take {type(model).__name__} with symbolic sizes: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error


def other_sizes(latents: Tensor, axes: tuple[int, ...]) -> list[Tensor]:
    """Latents of two other sizes, made of these, that a dynamic artefact is verified on as well.

    The first has twice the frames (the clip, and backwards) and about half the height and width, the second a row
    less. No size is below 2.
    """
    first, second = latents, latents
    height, width = latents.ndim - 2, latents.ndim - 1
    for axis in axes:
        size = latents.shape[axis]
        if axis == height:
            first = first.narrow(axis, 0, max(2, size // 2))
            second = second.narrow(axis, 0, max(2, size - 1))
        elif axis == width:
            first = first.narrow(axis, 0, max(2, size // 2 + 1))
        else:
            first = torch.cat([first, first.flip(axis)], dim=axis)
    found = {tuple(each.shape): each.contiguous() for each in (first, second)}
    found.pop(tuple(latents.shape), None)
    return list(found.values())
