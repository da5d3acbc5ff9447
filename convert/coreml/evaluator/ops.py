"""What each operation of an ML program computes, in torch.

To add one: a function of its `Operands` in OPS, and a case in tests/convert/test_reference_ops.py. Floating values
come and go in fp32; `evaluate` rounds them. Semantics are those of coremltools' MIL operation reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ExportError

if TYPE_CHECKING:
    from .program import Constant, Operation, Variable


class Operands:
    """The inputs of one operation, and which of them its function has read."""

    def __init__(self, operation: Operation, values: Mapping[str, Tensor]) -> None:
        self._operation = operation
        self._values = values
        self._read: set[str] = set()

    def tensor(self, name: str) -> Tensor:
        """An input as a tensor, computed or constant."""
        return self._tensor(self._take(name))

    def optional(self, name: str) -> Tensor | None:
        """The same, None where the program leaves it out."""
        operand = self._take(name)
        return None if operand is None or getattr(operand, "value", 0) is None else self._tensor(operand)

    def tensors(self, name: str) -> list[Tensor]:
        """An input that is a list."""
        operand = self._take(name)
        return [self._tensor(item) for item in (operand if isinstance(operand, tuple) else (operand,))]

    def setting(self, name: str) -> Any:
        """A constant input as plain Python: number, boolean, string, list; None where there is none."""
        operand = self._take(name)
        if operand is None:
            return None
        if not hasattr(operand, "value"):
            raise self.error(f"{name} is computed, a constant is needed")
        value = operand.value
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else value

    def finish(self) -> None:
        """Raise for an input that was not read: nothing that the program says is ignored."""
        if unread := set(self._operation.inputs) - self._read:
            raise self.error(f"the input {', '.join(sorted(unread))} is not known")

    def error(self, what: str) -> ExportError:
        return ExportError(f"Reference evaluator: {self._operation.kind} {self._operation.name}: {what}.")

    def _take(self, name: str) -> Any:
        self._read.add(name)
        return self._operation.inputs.get(name)

    def _tensor(self, operand: Constant | Variable) -> Tensor:
        if not hasattr(operand, "value"):
            return self._values[operand.name]
        value = torch.from_numpy(np.array(operand.value))
        return value.float() if value.is_floating_point() else value


Function = Callable[[Operands], Tensor | list[Tensor]]


def _unary(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda a: function(a.tensor("x"))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda a: function(a.tensor("x"), a.tensor("y"))


def _reduction(function: Callable[..., Tensor]) -> Function:
    def reduce(a: Operands) -> Tensor:
        x, axes = a.tensor("x"), a.setting("axes")
        return function(x, dim=list(range(x.ndim)) if axes is None else axes, keepdim=a.setting("keep_dims"))

    return reduce


def _with_epsilon(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda a: function(a.tensor("x") + a.setting("epsilon"))


def _gelu(a: Operands) -> Tensor:
    x, mode = a.tensor("x"), a.setting("mode") or "EXACT"
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _cast(a: Operands) -> Tensor:
    a.setting("dtype")  # the output's type says the same, and evaluate() gives every output its type
    return a.tensor("x")


def _conv(a: Operands) -> Tensor:
    x, weight, bias = a.tensor("x"), a.tensor("weight"), a.optional("bias")
    strides, dilations, groups = a.setting("strides"), a.setting("dilations"), a.setting("groups")
    pad_type, pad = a.setting("pad_type"), a.setting("pad")
    spatial = range(x.ndim - 2)
    if pad_type == "valid":
        pairs = [(0, 0) for _ in spatial]
    elif pad_type == "custom":
        pairs = [(pad[2 * i], pad[2 * i + 1]) for i in spatial]
    elif pad_type in ("same", "same_lower"):
        pairs = []
        for i in spatial:
            size, kernel = x.shape[2 + i], (weight.shape[2 + i] - 1) * dilations[i] + 1
            total = max(0, (-(-size // strides[i]) - 1) * strides[i] + kernel - size)
            less, more = total // 2, total - total // 2
            pairs.append((less, more) if pad_type == "same" else (more, less))
    else:
        raise a.error(f"pad_type {pad_type!r} is not known")
    # Padding apart, which both sides may have differently and torch's own does not.
    x = F.pad(x, [n for pair in reversed(pairs) for n in pair])
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[x.ndim - 2]
    return convolve(x, weight, bias, stride=strides, dilation=dilations, groups=groups)


def _linear(a: Operands) -> Tensor:
    return F.linear(a.tensor("x"), a.tensor("weight"), a.optional("bias"))


def _matmul(a: Operands) -> Tensor:
    x, y = a.tensor("x"), a.tensor("y")
    x = x.transpose(-1, -2) if a.setting("transpose_x") else x
    return x @ (y.transpose(-1, -2) if a.setting("transpose_y") else y)


def _layer_norm(a: Operands) -> Tensor:
    x, axes, gamma, beta = a.tensor("x"), a.setting("axes"), a.optional("gamma"), a.optional("beta")
    axes = list(range(x.ndim)) if axes is None else sorted(axis % x.ndim for axis in axes)
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().mean(axes, keepdim=True)
    x = (x - mean) * torch.rsqrt(variance + a.setting("epsilon"))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    x = x if gamma is None else x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


def _batch_norm(a: Operands) -> Tensor:
    x, gamma, beta = a.tensor("x"), a.optional("gamma"), a.optional("beta")
    return F.batch_norm(x, a.tensor("mean"), a.tensor("variance"), gamma, beta, eps=a.setting("epsilon"))


def _attention(a: Operands) -> Tensor:
    query, key, value, mask = a.tensor("query"), a.tensor("key"), a.tensor("value"), a.optional("attn_mask")
    return F.scaled_dot_product_attention(query, key, value, mask)


def _softmax(a: Operands) -> Tensor:
    return a.tensor("x").softmax(a.setting("axis"))


def _reshape(a: Operands) -> Tensor:
    x, shape = a.tensor("x"), a.setting("shape")
    # A 0 takes the size of the axis that is as far from the last one, and is 1 where x has none.
    kept = [1] * (len(shape) - x.ndim) + list(x.shape[max(0, x.ndim - len(shape)) :])
    return x.reshape([own if size == 0 else size for size, own in zip(shape, kept)])


def _transpose(a: Operands) -> Tensor:
    return a.tensor("x").permute(a.setting("perm"))


def _expand_dims(a: Operands) -> Tensor:
    x, axes = a.tensor("x"), a.setting("axes")
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Operands) -> Tensor:
    x, axes = a.tensor("x"), a.setting("axes")
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _concat(a: Operands) -> Tensor:
    if a.setting("interleave"):
        raise a.error("interleave is not known")
    return torch.cat(a.tensors("values"), a.setting("axis"))


def _split(a: Operands) -> list[Tensor]:
    x, axis, count, sizes = (
        a.tensor("x"),
        a.setting("axis"),
        a.setting("num_splits"),
        a.setting("split_sizes"),
    )
    return list(x.split(x.shape[axis] // count if sizes is None else sizes, axis))


def _stack(a: Operands) -> Tensor:
    return torch.stack(a.tensors("values"), a.setting("axis"))


def _slice_by_index(a: Operands) -> Tensor:
    x, begin, end = a.tensor("x"), a.setting("begin"), a.setting("end")
    none = [False] * x.ndim
    begin_mask, end_mask, squeeze_mask = (a.setting(f"{name}_mask") or none for name in ("begin", "end", "squeeze"))
    stride = a.setting("stride") or [1] * x.ndim
    dropped = []
    for axis, size in enumerate(x.shape):
        if squeeze_mask[axis]:
            index = range(size)[begin[axis]]
            x = x.narrow(axis, index, 1)
            dropped.append(axis)
            continue
        first = None if begin_mask[axis] else begin[axis]
        last = None if end_mask[axis] else end[axis]
        kept = range(size)[slice(first, last, stride[axis])]
        if stride[axis] == 1:
            x = x.narrow(axis, kept.start, len(kept))
        else:
            x = x.index_select(axis, torch.tensor(list(kept), dtype=torch.int64))
    return x.squeeze(tuple(dropped)) if dropped else x


def _slice_by_size(a: Operands) -> Tensor:
    x, begin, size = a.tensor("x"), a.setting("begin"), a.setting("size")
    for axis, full in enumerate(x.shape):
        first = range(full)[begin[axis]] if begin[axis] < 0 else begin[axis]
        x = x.narrow(axis, first, full - first if size[axis] == -1 else size[axis])
    return x


def _tile(a: Operands) -> Tensor:
    return a.tensor("x").repeat(a.setting("reps"))


def _pad(a: Operands) -> Tensor:
    x, pad, mode, value = a.tensor("x"), a.setting("pad"), a.setting("mode"), a.setting("constant_val")
    # MIL lists the last axes in order, torch from the last one backwards.
    pairs = [pad[i : i + 2] for i in range(0, len(pad), 2)]
    if mode == "constant":
        return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=value)
    if mode not in ("reflect", "replicate"):
        raise a.error(f"mode {mode!r} is not known")
    for axis, (before, after) in enumerate(pairs, start=x.ndim - len(pairs)):
        last = x.shape[axis] - 1
        index = torch.arange(-before, last + after + 1)
        index = index.clamp(0, last) if mode == "replicate" else last - (last - index.abs()).abs()
        x = x.index_select(axis, index)
    return x


def _pixel_shuffle(a: Operands) -> Tensor:
    return F.pixel_shuffle(a.tensor("x"), a.setting("upscale_factor"))


def _upsample_nearest_neighbor(a: Operands) -> Tensor:
    """Output row i is input row floor(i / scale), as documented for whole scales; others are refused."""
    x, scales = a.tensor("x"), [a.setting("scale_factor_height"), a.setting("scale_factor_width")]
    if any(scale != int(scale) for scale in scales):
        raise a.error(f"scales {scales} are not whole")
    for axis, scale in zip((-2, -1), scales):
        x = x.repeat_interleave(int(scale), dim=axis)
    return x


OPS: dict[str, Function] = {
    "abs": _unary(torch.abs),
    "add": _binary(torch.add),
    "batch_norm": _batch_norm,
    "cast": _cast,
    "clip": lambda a: a.tensor("x").clamp(a.setting("alpha"), a.setting("beta")),
    "concat": _concat,
    "conv": _conv,
    "cos": _unary(torch.cos),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "expand_dims": _expand_dims,
    "floor": _unary(torch.floor),
    "gelu": _gelu,
    "identity": _unary(lambda x: x),
    "inverse": _with_epsilon(torch.reciprocal),
    "layer_norm": _layer_norm,
    "leaky_relu": lambda a: F.leaky_relu(a.tensor("x"), a.setting("alpha")),
    "linear": _linear,
    "matmul": _matmul,
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mul": _binary(torch.mul),
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "pow": _binary(torch.pow),
    "real_div": _binary(torch.div),
    "reduce_max": _reduction(torch.amax),
    "reduce_mean": _reduction(torch.mean),
    "reduce_min": _reduction(torch.amin),
    "reduce_sum": _reduction(torch.sum),
    "relu": _unary(torch.relu),
    "reshape": _reshape,
    "rsqrt": _with_epsilon(torch.rsqrt),
    "scaled_dot_product_attention": _attention,
    "sigmoid": _unary(torch.sigmoid),
    "silu": _unary(F.silu),
    "sin": _unary(torch.sin),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "softmax": _softmax,
    "split": _split,
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "squeeze": _squeeze,
    "stack": _stack,
    "sub": _binary(torch.sub),
    "tanh": _unary(torch.tanh),
    "tile": _tile,
    "transpose": _transpose,
    "upsample_nearest_neighbor": _upsample_nearest_neighbor,
}
