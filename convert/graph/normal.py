"""The one form in which captured graphs write what PyTorch can say in several ways.

Rewrites, limits and lowerings look for one spelling of an op each. `normalise` brings a graph to it:

    conv(x, w, b, stride, "valid")        ->  conv(x, w, b, stride, 0)
    conv(x, w, b, 1, "same")              ->  conv(x, w, b, 1, half the kernel), behind a pad where it is even
    mean(x), mean(x, None), mean(x, [])   ->  mean(x, every axis); the same for sum, amax and amin
    relu_(x), add_(x, y)                  ->  relu(x), add(x, y)
    dropout in eval mode, a cast to the dtype that a tensor has, asserts  ->  nothing
    a region under no_grad, or under autocast that is off  ->  its ops

What has no such form is refused, and the error says why: ops that draw random numbers, that change an input, a
buffer or memory which another op still reads, and branches.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import ExportError
from .ops import REDUCTIONS, aten

_STRING_PADDING = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}

# Reduction -> the overload that names axes, and where a call of it has them.
_WHOLE = {
    aten.mean.default: aten.mean.dim,
    aten.sum.default: aten.sum.dim_IntList,
}

_ASSERTS = ("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "_check")
_CASTS = (aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default)
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)


def normalise(module: fx.GraphModule) -> None:
    """Bring a graph that torch.export made to the form that this file's docstring draws, in place.

    Raises ExportError for what has no such form.
    """
    _inline_regions(module)
    for node in list(module.graph.nodes):
        if node.op == "call_function":
            _drop(node)
    for node in list(module.graph.nodes):
        if node.op == "call_function":
            _write_out_of_place(module, node)
    for node in list(module.graph.nodes):
        if node.op == "call_function":
            _number_padding(module, node)
            _name_axes(module, node)
    _refuse_the_rest(module)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _drop(node: fx.Node) -> None:
    """Remove what computes nothing: asserts, dropout in eval mode, casts to the dtype that is there."""
    name = str(getattr(node.target, "_opname", node.target))
    if name.startswith(_ASSERTS) and not node.users:
        node.graph.erase_node(node)
    elif (node.target in _DROPOUTS and not node.args[2]) or (node.target in _CASTS and _keeps_dtype(node)):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)


def _keeps_dtype(node: fx.Node) -> bool:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta.get("val"), node.meta.get("val")
    return isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype == after.dtype


def _insert(module: fx.GraphModule, before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A call before `before`, with its source module and the shape of its result."""
    with module.graph.inserting_before(before):
        node = module.graph.call_function(target, args, kwargs)
    values, named = fx.map_arg((args, kwargs), lambda n: n.meta["val"].to("meta"))
    node.meta = {key: value for key, value in before.meta.items() if key != "val"}
    node.meta["val"] = target(*values, **named)
    return node


def _replace(node: fx.Node, new: fx.Node) -> None:
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def _number_padding(module: fx.GraphModule, node: fx.Node) -> None:
    if node.target not in _STRING_PADDING:
        return
    x, weight, bias, stride, padding, dilation, groups = _arguments(node)
    spatial = weight.meta["val"].ndim - 2
    stride, dilation = (list(v) * spatial if len(v) == 1 else list(v) for v in (stride, dilation))
    # The size by which a kernel shrinks each axis. An even kernel wants one more value behind than before.
    shrink = [d * (k - 1) for d, k in zip(dilation, weight.meta["val"].shape[2:])]
    wanted = [0] * spatial if padding == "valid" else [s // 2 for s in shrink]
    if padding == "same" and any(s % 2 for s in shrink):
        sides = [side for s in reversed(shrink) for side in (s // 2, s - s // 2)]
        x = _insert(module, node, aten.constant_pad_nd.default, x, sides, 0.0)
        wanted = [0] * spatial
    target = _STRING_PADDING[node.target]
    _replace(node, _insert(module, node, target, x, weight, bias, stride, wanted, dilation, groups))


def _name_axes(module: fx.GraphModule, node: fx.Node) -> None:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return
    every = list(range(source.meta["val"].ndim))
    if node.target in _WHOLE:
        _replace(node, _insert(module, node, _WHOLE[node.target], source, every, False, **node.kwargs))
    elif node.target in REDUCTIONS and not _arguments(node)[1] and every:
        keepdim = _arguments(node)[2]
        _replace(node, _insert(module, node, node.target, source, every, keepdim, **node.kwargs))


def _arguments(node: fx.Node) -> list[Any]:
    """Every argument of a call in the order of the op's schema, defaults filled in."""
    found = []
    for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        value = argument.default_value if argument.has_default_value() else None
        found.append(node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, value))
    return found


def _write_out_of_place(module: fx.GraphModule, node: fx.Node) -> None:
    """An op that writes over its first operand, as the op of the same name that does not."""
    if not _writes(node):
        return
    target, source = node.target, node.args[0]
    assert isinstance(target, torch._ops.OpOverload)
    assert isinstance(source, fx.Node)
    name = target._opname
    plain = getattr(getattr(aten, name.removesuffix("_"), None), target._overloadname, None)
    if plain is None or not name.endswith("_") or name.endswith("__"):
        raise ExportError(f"{_where(node)} writes over memory in place: write it so that it returns a new tensor.")
    for other in _same_memory(source):
        if other.op in ("placeholder", "get_attr"):
            what = "an input" if other.op == "placeholder" else "a parameter or buffer"
            raise ExportError(
                f"{_where(node)} writes over {other.name}, {what} of the model: write it so that it returns a new "
                "tensor."
            )
        # A view that is taken later sees what was written, and reads it from the new tensor.
        if other is not source and other < node and any(node < user for user in other.users):
            raise ExportError(
                f"{_where(node)} writes over memory that {other.name} shares and a later op reads: write it so "
                "that it returns a new tensor."
            )
    new = _insert(module, node, plain, *node.args, **node.kwargs)
    source.replace_all_uses_with(new, delete_user_cb=lambda user: user is not node and node < user)
    _replace(node, new)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _same_memory(node: fx.Node) -> set[fx.Node]:
    """Every node whose result may share memory with that of `node`, itself included."""
    found, near_by = {node}, [node]
    while near_by:
        one = near_by.pop()
        near = [user for user in one.users if _shares(user) and user.args and user.args[0] is one]
        if _shares(one) and one.args and isinstance(one.args[0], fx.Node):
            near.append(one.args[0])
        for other in near:
            if other not in found:
                found.add(other)
                near_by.append(other)
    return found


def _shares(node: fx.Node) -> bool:
    """Whether the result of an op may be memory of its first operand."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.op != "call_function":
        return False
    # These return their operand where nothing has to move; their schemas do not say so.
    maybe = (aten.reshape.default, aten.contiguous.default, aten.flatten.using_ints, *_CASTS)
    return node.target in maybe or any(result.alias_info is not None for result in schema.returns)


def _inline_regions(module: fx.GraphModule) -> None:
    """Put the ops of a region that only switches gradients or an idle autocast in the region's place."""
    for node in list(module.graph.nodes):
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            continue
        if name == "wrap_with_autocast" and node.args[2]:
            raise ExportError(
                f"{_where(node)} runs under torch.autocast: capture the model without it, in float32."
            )
        place = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
        region = module.get_submodule(str(node.args[place].target))
        assert isinstance(region, fx.GraphModule)
        results = _paste(module, node, region, node.args[place + 1 :])
        for user in list(node.users):
            _replace(user, results[user.args[1]])
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()


def _paste(module: fx.GraphModule, before: fx.Node, region: fx.GraphModule, inputs: Any) -> Any:
    given = iter(inputs)
    made: dict[fx.Node, fx.Node] = {}
    for inner in region.graph.nodes:
        if inner.op == "placeholder":
            made[inner] = next(given)
        elif inner.op == "output":
            return fx.map_arg(inner.args[0], made.__getitem__)
        elif inner.op == "get_attr":
            raise ExportError(f"{_where(before)} holds {inner.target}: move the region's weights to the model.")
        else:
            with module.graph.inserting_before(before):
                made[inner] = module.graph.node_copy(inner, made.__getitem__)
    return ()


def _refuse_the_rest(module: fx.GraphModule) -> None:
    for node in _calls(module):
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise ExportError(
                f"{_where(node)} chooses what to compute while it runs ({node.target}): an artefact holds one "
                "path. Decide it when the model is built."
            )
        if _draws_random_numbers(node):
            raise ExportError(
                f"{_where(node)} draws random numbers ({node.target}): a decoder that is exported gives "
                "the same frames for the same latents. Take the noise as an input, or leave it out."
            )


def _draws_random_numbers(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    # Attention with no dropout, and activations outside of training, only could.
    given = dict(zip((argument.name for argument in node.target._schema.arguments), _arguments(node)))
    return bool(given.get("dropout_p", given.get("training", True)))


def _calls(module: fx.GraphModule) -> Iterator[fx.Node]:
    return (node for node in module.graph.nodes if node.op == "call_function")


def _where(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return f"{node.name} of {path}" if path else node.name
