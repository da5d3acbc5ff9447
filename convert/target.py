"""What a target is: a runtime, an ordered list of rewrites per precision, and a way to lower."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from .errors import ExportError
from .rewrite import Rewrite


@dataclass(frozen=True)
class Lowered:
    """What lowering tells the manifest.

    Attributes:
        input_dtype, output_dtype: what the artefact takes and gives, in numpy's words.
        settings: choices that were made, for people who reproduce the artefact.
        delegation: delegates, nodes inside and nodes outside by op, where the runtime delegates.
    """

    input_dtype: str = "float32"
    output_dtype: str = "float32"
    settings: Mapping[str, Any] = field(default_factory=dict)
    delegation: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Precision:
    """How one precision is reached on a target.

    Attributes:
        rewrites: applied in this order.
        max_abs: largest allowed difference from the fp32 eager output, for outputs nominally in [-1, 1].
        reason: where that number comes from.
    """

    rewrites: tuple[Rewrite, ...]
    max_abs: float
    reason: str


@dataclass(frozen=True)
class Target:
    """A runtime that a model is lowered to.

    Attributes:
        name: as in `--target` and as the extra in `pip install handheld[name]`.
        runtime: name of the session that runs the artefact.
        filename: the artefact's file or folder.
        packages: importable packages that lowering needs.
        precisions: by name.
        lower: writes the artefact of a rewritten graph; takes (graph, example latents, precision, path).
    """

    name: str
    runtime: str
    filename: str
    packages: tuple[str, ...]
    precisions: Mapping[str, Precision]
    lower: Callable[[fx.GraphModule, Tensor, str, Path], Lowered]

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def precision(self, name: str) -> Precision:
        """A precision of this target. Raises ExportError naming what there is."""
        if name not in self.precisions:
            raise ExportError(f"Target {self.name} has no precision {name!r}; it has {', '.join(self.precisions)}.")
        return self.precisions[name]


def in_half(graph: fx.GraphModule, latents: Tensor) -> tuple[fx.GraphModule, Tensor]:
    """A half-precision copy. `half()` alone would turn the caller's model, which shares the weights."""
    return copy.deepcopy(graph).half(), latents.half()
