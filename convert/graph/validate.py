"""Checks each place of a rewrite as it is applied, on the values that the model has there, and names a wrong one.

The result of every op is kept from one run of the captured graph. Where those would be too many bytes, some values
of each are kept, and a place is checked on tensors that are drawn from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import ExportError
from .memory import size_bytes
from .nodes import constant_of, is_constant, module_of, shape_of

# Rewrites are exact in real arithmetic. What is left is fp32 summation order: 2e-5 on the whole LTX preset.
TOLERANCE = 1e-4

# A value that inputs cancel to, such as x - mean(x) of a flat clip, is as exact as the inputs are.
_OF_INPUTS = 1e-2

# Of activations that are kept.
_MOST_BYTES = 1_000_000_000

# Values that are kept of each tensor where whole ones would be too many bytes.
_SAMPLE = 4096


class Validator:
    """Watches rewrites being applied to one graph, see `rewrite.apply`.

    Args:
        module: the captured graph, before any rewrite.
        inputs: real ones, best: a fault may hide from random ones.
        most_bytes: of activations that may be kept whole; above, the checks are on values that are drawn from them.

    Raises ExportError from the call for a result that differs from what the replaced op gave, by more than 1e-4 of
    its largest value. The message names rewrite, node and module.
    """

    def __init__(self, module: fx.GraphModule, inputs: tuple[Tensor, ...], most_bytes: int = _MOST_BYTES) -> None:
        self.checked = 0
        self._values: dict[fx.Node, Tensor] = {}
        self._samples: dict[fx.Node, Tensor] = {}
        self._random = torch.Generator().manual_seed(0)
        whole = sum(size_bytes(node) for node in module.graph.nodes if isinstance(node.meta.get("val"), Tensor))
        keep = whole <= most_bytes
        values, remember = self._values, self._remember

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if isinstance(result, Tensor) and n.op != "get_attr":
                    if keep:
                        values[n] = result
                    else:
                        remember(n, result)
                return result

        with torch.no_grad():
            Recorder(module).run(*inputs)

    def __call__(self, rewrite: str, root: fx.Node, new: fx.Node) -> None:
        values = dict(self._values)
        if root not in values:
            self._make_up(root, new, values)
        wanted = self._evaluate(root, values)
        found = self._evaluate(new, values)
        read = [values[x] for x in _outer(new, set(), self._known) if x in values and values[x].is_floating_point()]
        self._compare(rewrite, root, found, wanted, read)
        if self._values:
            made = [node for node in values if node not in self._values and not is_constant(node)]
            self._values.update({node: values[node] for node in made})
            del self._values[root]
        else:
            self._remember(new, found)
        self.checked += 1

    def _known(self, node: fx.Node) -> bool:
        return node in self._values or node in self._samples

    def _remember(self, node: fx.Node, value: Tensor) -> None:
        """Keep some values of a tensor, which a check may start from."""
        if value.numel() and not self._known(node):
            self._samples[node] = self._drawn(value.flatten(), (min(_SAMPLE, value.numel()),))

    def _drawn(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        return values[torch.randint(len(values), shape, generator=self._random)]

    def _make_up(self, root: fx.Node, new: fx.Node, values: dict[fx.Node, Tensor]) -> None:
        """Drawn values for what both the replaced op and its replacement are computed from."""
        read = _outer(new, set(), self._known)
        for node in dict.fromkeys([*read, *_outer(root, set(read), self._known)]):
            values[node] = self._drawn(self._samples[node], shape_of(node))

    def _evaluate(self, node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor:
        """What a node gives, from what is known."""
        pending = [node]
        while pending:
            one = pending[-1]
            if one in values:
                pending.pop()
                continue
            if is_constant(one):
                values[one] = constant_of(one)
                continue
            if missing := [x for x in one.all_input_nodes if x not in values]:
                pending += missing
                continue
            args, kwargs = fx.map_arg((one.args, one.kwargs), values.__getitem__)
            with torch.no_grad():
                values[one] = one.target(*args, **kwargs)  # type: ignore[operator]
        return values[node]

    def _compare(self, rewrite: str, root: fx.Node, found: Tensor, wanted: Tensor, read: list[Tensor]) -> None:
        if not wanted.is_floating_point() or not wanted.numel():
            difference, allowed = float(not torch.equal(found, wanted)), 0.0
        else:
            difference = (found - wanted).abs().max().item()
            inputs = max((x.abs().max().item() for x in read if x.numel()), default=0.0)
            allowed = TOLERANCE * max(wanted.abs().max().item(), _OF_INPUTS * inputs)
        if difference <= allowed or (math.isnan(difference) and not wanted.isfinite().all()):
            return
        module = module_of(root)
        raise ExportError(
            f"The rewrite {rewrite} is wrong for {root.name}{f' of {module}' if module else ''}: its result "
            f"differs by {difference:.3g} (allowed: {allowed:.3g}) from what {root.target} gives. Leave it out "
            f"with --without {rewrite}, and please report it."
        )


def _outer(node: fx.Node, stop: set[fx.Node], known: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """Where walking back from a node ends: at `stop`, and where that is empty at what is known; else at inputs."""
    found: dict[fx.Node, None] = {}
    seen = {node}
    pending = [node]
    while pending:
        for x in pending.pop().all_input_nodes:
            if x in seen:
                continue
            seen.add(x)
            if x in stop or (not stop and known(x)) or x.op == "placeholder":
                found[x] = None
            elif not is_constant(x):
                pending.append(x)
    return list(found)
