"""The stated limits against what the runtimes' own partitioners, converters and loaders say, op by op.

To add an op: a line in CASES. All cases of a runtime are one program of independent parts, lowered once; those that
stop the whole lowering are tried alone.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from handheld.convert import TARGETS
from handheld.convert.coreml import limits as coreml
from handheld.convert.executorch import vulkan_limits as vulkan
from handheld.convert.executorch import xnnpack_limits as xnnpack
from handheld.convert.graph.capture import capture
from handheld.convert.graph.limits import Limit
from handheld.convert.graph.nodes import module_of
from handheld.convert.onnx import limits as onnxruntime
from handheld.convert.quiet import quiet
from handheld.convert.rewrites.cases import Lambda
from handheld.models import TurboVAEDecoder

CLIP = (1, 8, 3, 6, 6)
FRAMES = (3, 8, 6, 6)
IMAGE = (1, 8, 6, 6)


class _Product(nn.Module):
    """A constant matrix on one side of a product."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.left = left
        self.register_buffer("matrix", torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix @ x if self.left else x @ self.matrix


class _ComputedWeight(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, x[:, :, :3, :3])


def _shuffle_time(x: Tensor) -> Tensor:
    return x.reshape(1, 4, 2, 3, 6, 6).transpose(2, 3).reshape(1, 4, 6, 6, 6)


# Name -> what makes the module (a function of one tensor stands for itself), shape.
CASES: dict[str, tuple[nn.Module | Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "conv3d": (nn.Conv3d(8, 8, 3, padding=1), CLIP),
    "conv2d of frames": (nn.Conv2d(8, 8, 3, padding=1), FRAMES),
    "conv2d of an image": (nn.Conv2d(8, 8, 3, padding=1), IMAGE),
    "conv2d depthwise": (nn.Conv2d(8, 8, 3, groups=8), IMAGE),
    "conv2d with a computed weight": (_ComputedWeight(), IMAGE),
    "conv2d of a wide image": (nn.Conv2d(1, 1, 1), (1, 1, 2, 20000)),
    "conv2d of many channels": (nn.Conv2d(9000, 1, 1), (1, 9000, 1, 1)),
    "transposed conv2d": (nn.ConvTranspose2d(8, 8, 2, stride=2), IMAGE),
    "mean over channels, clip": (lambda x: x.mean(1, True), CLIP),
    "mean over channels, frames": (lambda x: x.mean(1, True), FRAMES),
    "mean over space": (lambda x: x.mean((2, 3), True), FRAMES),
    "mean over space without keepdim": (lambda x: x.mean((2, 3)), FRAMES),
    "mean over space and time": (lambda x: x.mean((2, 3, 4), True), CLIP),
    "maximum over channels": (lambda x: x.amax(1, True), FRAMES),
    "variance": (lambda x: x.var(1, keepdim=True), FRAMES),
    "layer_norm, frames": (nn.LayerNorm(6), FRAMES),
    "layer_norm, clip": (nn.LayerNorm(6), CLIP),
    "group_norm": (nn.GroupNorm(2, 8), FRAMES),
    "batch_norm": (nn.BatchNorm2d(8), FRAMES),
    "pixel_shuffle, frames": (lambda x: F.pixel_shuffle(x, 2), FRAMES),
    "pixel_shuffle, clip": (lambda x: F.pixel_shuffle(x, 2), (1, 3, 8, 6, 6)),
    "repeat, clip": (lambda x: x.repeat(1, 1, 2, 1, 1), CLIP),
    "repeat, frames": (lambda x: x.repeat(1, 2, 1, 1), FRAMES),
    "expand": (lambda x: x[:, :, :1].expand(1, 8, 4, 6, 6), CLIP),
    "silu, frames": (F.silu, FRAMES),
    "silu, clip": (F.silu, CLIP),
    "gelu": (F.gelu, FRAMES),
    "relu, clip": (F.relu, CLIP),
    "relu, rank 6": (F.relu, (1, 4, 2, 3, 6, 6)),
    "relu, rank 7": (F.relu, (1, 2, 2, 2, 3, 2, 2)),
    "relu of a wide image": (F.relu, (1, 1, 2, 20000)),
    "square": (lambda x: x.pow(2), FRAMES),
    "cube": (lambda x: x.pow(3), FRAMES),
    "rsqrt, clip": (torch.rsqrt, CLIP),
    "add, clip": (lambda x: x + x, CLIP),
    "add a number": (lambda x: x + 0.5, FRAMES),
    "from a number": (lambda x: 1 - x, FRAMES),
    "times a number": (lambda x: x * 2.5, FRAMES),
    "broadcast": (lambda x: x * x[:, :1], CLIP),
    "replicated border": (lambda x: torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2), CLIP),
    "cat of six": (lambda x: torch.cat([x, x[:1], x[1:2], x[2:], x[:2], x[1:]]), FRAMES),
    "cat of one with itself": (lambda x: torch.cat([x, x]), FRAMES),
    "slice": (lambda x: x[:, :, 1:], CLIP),
    "slice with a step": (lambda x: x[:, :, ::2], FRAMES),
    "slice of everything": (lambda x: x[:, :, 0:] + x, CLIP),
    "select": (lambda x: x.select(2, 0), CLIP),
    "split": (lambda x: torch.split(x, 4, 1)[0], FRAMES),
    "transpose, clip": (lambda x: x.transpose(1, 2), CLIP),
    "transpose, rank 6": (lambda x: x.transpose(2, 3), (1, 4, 2, 3, 6, 6)),
    "permute, rank 7": (lambda x: x.permute(0, 1, 3, 2, 4, 5, 6), (1, 2, 2, 2, 3, 2, 2)),
    "movedim": (lambda x: x.movedim(1, -1), CLIP),
    "reshape to rank 6": (lambda x: x.reshape(1, 4, 2, 3, 6, 6), CLIP),
    "interleave frames, over rank 6": (_shuffle_time, CLIP),
    "unsqueeze": (lambda x: x.unsqueeze(1), FRAMES),
    "pad with zeros, frames": (lambda x: F.pad(x, (1, 1, 1, 1)), FRAMES),
    "pad with zeros, clip": (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1)), CLIP),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2.0), FRAMES),
    "nearest-exact": (lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest-exact"), FRAMES),
    "nearest, clip": (lambda x: F.interpolate(x, scale_factor=(1.0, 2.0, 2.0)), CLIP),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), FRAMES),
    "softmax over the last axis": (lambda x: x.softmax(-1), FRAMES),
    "softmax over channels": (lambda x: x.softmax(1), FRAMES),
    "linear": (nn.Linear(6, 6), FRAMES),
    "computed matrices, batched": (lambda x: torch.bmm(x, x.transpose(1, 2)), (2, 5, 6)),
    "constant matrix on the left": (_Product(left=True), (6, 40)),
    "constant matrix on the right": (_Product(left=False), (40, 6)),
}


# Taken by XNNPACK's partitioner all the same: what the rule says shows when the program is loaded or run.
HIGH_RANK = ("relu, rank 6", "transpose, rank 6", "pixel_shuffle, frames", "interleave frames, over rank 6")
FAIL_LATER = ("conv3d", "relu, rank 7", "permute, rank 7", "pixel_shuffle, clip")


def module(name: str) -> nn.Module:
    made = CASES[name][0]
    return (deepcopy(made) if isinstance(made, nn.Module) else Lambda(made)).eval()


class _Parts(nn.Module):
    """Cases side by side: one input and one output each. A node's module stack says which case it is of."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(module(name) for name in names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part, x in zip(self.parts, inputs))


def part_of(node: fx.Node) -> int:
    paths = [path for path, _ in node.meta["nn_module_stack"].values()]
    return next(int(path.split(".")[1]) for path in paths if path.startswith("parts."))


def ops(graph: fx.Graph) -> Iterator[fx.Node]:
    for node in graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            yield node


@cache
def stated(limits: Callable, dtype: torch.dtype) -> dict[str, list[Limit]]:
    """Per case, the limits of its nodes."""
    graph = capture(_Parts(list(CASES)), tuple(torch.randn(shape) for _, shape in CASES.values()))
    found: dict[str, list[Limit]] = {name: [] for name in CASES}
    for node in ops(graph.graph):
        if limit := limits(node, dtype):
            found[list(CASES)[part_of(node)]].append(limit)
    return found


def partitioned(partitioner, names: list[str], dtype: torch.dtype) -> dict[str, bool]:
    """Per case, whether a delegate of ExecuTorch takes all of it."""
    inputs = tuple(torch.randn(CASES[name][1]).to(dtype) for name in names)
    left = {part_of(node) for node in left_outside(partitioner, _Parts(names).to(dtype), inputs)}
    return {name: place not in left for place, name in enumerate(names)}


def left_outside(partitioner, model: nn.Module, inputs: tuple[Tensor, ...]) -> list[fx.Node]:
    """The nodes of the edge program that a delegate of ExecuTorch does not take."""
    from executorch.exir import EdgeCompileConfig, to_edge

    with quiet():
        program = torch.export.export(model, inputs)
        kept = list(partitioner.ops_to_not_decompose(program)[0])
        edge = to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False, preserve_ops=kept))
        tagged = partitioner.partition(edge.exported_program()).tagged_exported_program
    return [node for node in ops(tagged.graph) if "delegation_tag" not in node.meta]


def severities(found: list[Limit]) -> set[str]:
    return {limit.severity for limit in found}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_xnnpack_limits_are_what_the_partitioner_leaves_outside(dtype: torch.dtype) -> None:
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    found = stated(xnnpack.limits, dtype)
    names = [name for name in CASES if name not in FAIL_LATER]
    taken = partitioned(XnnpackPartitioner(), names, dtype)
    assert {name: not severities(found[name]) & {"refused", "outside"} for name in names} == taken


@pytest.mark.parametrize("name", HIGH_RANK + FAIL_LATER)
def test_what_xnnpack_is_said_to_refuse_fails_at_load_or_run_and_the_next_lower_rank_does_not(name: str) -> None:
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    found = severities(stated(xnnpack.limits, torch.float32)[name])
    assert found == ({"refused"} if name in FAIL_LATER else set())
    model, x = module(name), torch.randn(CASES[name][1])
    with quiet():
        program = torch.export.export(model, (x,))
        file = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer

    def run() -> Tensor:
        return Runtime.get().load_program(file).load_method("forward").execute([x])[0]

    if found:
        with pytest.raises(RuntimeError):
            run()
    else:
        assert torch.allclose(run(), model(x), atol=1e-5)


def test_vulkan_limits_are_what_the_partitioner_leaves_outside() -> None:
    pytest.importorskip("executorch")
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
    from executorch.exir import to_edge_transform_and_lower

    found = stated(vulkan.limits, torch.float32)
    # Lowering itself stops at these two; the second is decomposed into ops that are stated to be left outside.
    names = [name for name in CASES if name not in ("pixel_shuffle, clip", "nearest, clip")]
    taken = partitioned(VulkanPartitioner(), names, torch.float32)
    assert {name: not severities(found[name]) & {"refused", "outside"} for name in names} == taken
    assert severities(found["pixel_shuffle, clip"]) == {"refused"}
    program = torch.export.export(module("pixel_shuffle, clip"), (torch.randn(1, 3, 8, 6, 6),))
    with quiet(), pytest.raises(RuntimeError, match="was not decomposed"):
        to_edge_transform_and_lower(program, partitioner=[VulkanPartitioner()])


@pytest.mark.parametrize("runtime", ["xnnpack", "vulkan"])
def test_findings_in_a_whole_decoder_are_the_nodes_that_the_partitioner_leaves_module_by_module(
    runtime: str,
) -> None:
    pytest.importorskip("executorch")
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    model = TurboVAEDecoder.from_preset("tiny")
    latents = torch.randn(model.spec.latent_shape(frames=3, height=16, width=16))
    partitioner, limits = {
        "xnnpack": (XnnpackPartitioner, xnnpack.limits),
        "vulkan": (VulkanPartitioner, vulkan.limits),
    }[runtime]
    left = left_outside(partitioner(), model, (latents,))
    found = [node for node in ops(capture(model, (latents,)).graph) if limits(node, torch.float32)]
    if runtime == "xnnpack":  # taken by the partitioner, and fails to load
        found = [node for node in found if "pixel_shuffle" not in node.name]
    assert Counter(map(module_of, found)) == Counter(map(module_of, left))
    assert len(found) > 20


def _convert(names: list[str]) -> None:
    import coremltools as ct

    with quiet():
        inputs = tuple(torch.randn(CASES[name][1]) for name in names)
        program = torch.export.export(_Parts(names), inputs).run_decompositions({})
        ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS17,
            inputs=[ct.TensorType(name=f"x{i}", shape=tuple(x.shape), dtype=float) for i, x in enumerate(inputs)],
            outputs=[ct.TensorType(name=f"y{i}", dtype=float) for i in range(len(inputs))],
            skip_model_load=True,
        )


def test_core_ml_limits_are_what_coremltools_does_not_convert() -> None:
    pytest.importorskip("coremltools")
    found = stated(coreml.limits, torch.float32)
    refused = [name for name in CASES if "refused" in severities(found[name])]
    _convert([name for name in CASES if name not in refused])
    assert refused
    for name in refused:
        with pytest.raises((ValueError, NotImplementedError)):
            _convert([name])


def test_onnxruntime_runs_every_case_in_fp32_as_stated(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert not any("refused" in severities(found) for found in stated(onnxruntime.limits, torch.float32).values())
    model = _Parts(list(CASES)).eval()
    inputs = tuple(torch.randn(shape) for _, shape in CASES.values())
    for found, wanted in zip(_in_onnxruntime(model, inputs, tmp_path), model(*inputs), strict=True):
        assert np.allclose(found, wanted.detach().numpy(), atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("name", ["conv2d of an image", "group_norm", "relu, clip", "mean over channels, frames"])
def test_onnxruntime_refuses_double_precision_where_it_is_stated(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    model, x = module(name).double(), torch.randn(CASES[name][1]).double()
    graph = capture(model, (x,))
    refused = any(onnxruntime.limits(node, torch.float32) for node in ops(graph.graph))
    assert refused == ("conv" in name or "norm" in name)
    if refused:
        with pytest.raises(ort.NotImplemented):
            _in_onnxruntime(model, (x,), tmp_path)
    else:
        assert _in_onnxruntime(model, (x,), tmp_path)


def _in_onnxruntime(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> list[np.ndarray]:
    import onnxruntime as ort

    with quiet():
        program = torch.onnx.export(torch.export.export(model, inputs), dynamo=True, verbose=False)
        program.save(folder / "model.onnx", external_data=False)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})


def test_fp16_limits_name_what_overflows_and_what_rounds_to_zero() -> None:
    half = stated(onnxruntime.limits, torch.float16)
    assert [limit.reason for limit in half["square"]] == ["x^2 is infinite from |x| = 256 on"]
    assert [limit.reason for limit in half["cube"]] == ["x^3 is infinite from |x| = 41 on"]
    assert torch.tensor(256.0).half().pow(2).isinf()
    assert torch.tensor(255.0).half().pow(2).isfinite()
    assert torch.tensor(41.0).half().pow(3).isinf()
    assert torch.tensor(40.0).half().pow(3).isfinite()
    graph = capture(Lambda(lambda x: (x + 1e-8) + 1e-6), (torch.ones(2),))
    found = [onnxruntime.limits(node, torch.float16) for node in ops(graph.graph)]
    assert [limit and limit.reason for limit in found] == ["1e-08 rounds to zero", None]
    assert not any(onnxruntime.limits(node, torch.float32) for node in ops(graph.graph))


def test_every_target_states_its_limits_and_computes_its_half_precisions_in_half() -> None:
    for target in TARGETS.values():
        assert target.limits is not None, target.name
        for name, precision in target.precisions.items():
            if name.startswith("fp"):
                assert precision.dtype == {"fp32": torch.float32, "fp16": torch.float16}[name]


@pytest.mark.parametrize(("height", "severity"), [(2048, None), (2049, "device"), (16385, "outside")])
def test_vulkan_warns_of_textures_that_small_gpus_do_not_hold(height: int, severity: str | None) -> None:
    graph = capture(nn.Conv2d(1, 1, 3, padding=1), (torch.zeros(1, 1, height, 4),))
    (found,) = [vulkan.limits(n, torch.float32) for n in graph.graph.nodes if n.op == "call_function"]
    assert (found.severity if found else None) == severity
    assert found is None or ("2048 in height" in found.reason) == (severity == "device")
