"""The layers that a decoder declares, as units of which segments are made, and the modules that they use."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from handheld.models import LatentSpec, ModelError, decoder
from handheld.models.layers import Function, Layer, timing_of
from handheld.models.streaming import chain_of

from ..errors import ExportError


def units_of(model: nn.Module) -> dict[str, Layer]:
    """A decoder's layers, by the names of its modules; the weights are the decoder's own.

    Raises ExportError for a model that declares none, and for layers that need whole clips.
    """
    declares: Any = getattr(model, "layers", None)
    if not callable(declares) or isinstance(declares, nn.Module):
        raise ExportError(
            f"A {type(model).__name__} is not exported for streaming: it does not declare its layers, by a method "
            "`layers` (docs/streaming.md). Export whole clips."
        )
    try:
        layers: Mapping[str, Layer] = declares()
        chain_of(list(layers.values()))
    except ModelError as error:
        raise ExportError(str(error)) from error
    return dict(layers)


def spec_of(model: nn.Module) -> LatentSpec:
    """The latents that a decoder takes. Raises ExportError for a model that does not say."""
    try:
        return decoder.spec_of(model)
    except ModelError as error:
        raise ExportError(str(error)) from error


def is_causal(layers: Iterable[Layer]) -> bool:
    """Whether no frame depends on a later latent frame."""
    return timing_of(layers).causal


def on_meta(model: nn.Module) -> nn.Module:
    """A model with the same shapes and no values, in fp32. One that is on the meta device is given back itself."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.is_meta for tensor in tensors):
        return model
    # A copy that finds its tensors made already never holds the weights twice.
    return copy.deepcopy(model, {id(tensor): _without_values(tensor) for tensor in tensors})


def modules_of(layer: Layer) -> list[nn.Module]:
    """The modules that a layer uses, each once. Raises ExportError for functions that hide theirs."""
    found: dict[int, nn.Module] = {}
    for function in layer.functions_used:
        owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        if isinstance(owner, nn.Module):
            found[id(owner)] = owner
        elif hidden := [value for value in _held(function) if isinstance(value, nn.Module | Tensor)]:
            raise ExportError(
                f"A layer's function {function!r} holds a {type(hidden[0]).__name__} that an exported program "
                "would not know of: declare the module itself, or a method of it."
            )
    return list(found.values())


def weights_of(layer: Layer) -> int:
    """Values of the parameters that a layer uses."""
    parameters = chain.from_iterable(module.parameters() for module in modules_of(layer))
    return sum({id(p): p.numel() for p in parameters}.values())


def _held(function: Function) -> list[object]:
    """What a function has beside its arguments."""
    if isinstance(function, partial):
        return [function.func, *function.args, *function.keywords.values(), *_held(function.func)]
    return [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]


def _without_values(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    empty = torch.empty_like(tensor, device="meta", dtype=dtype)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
