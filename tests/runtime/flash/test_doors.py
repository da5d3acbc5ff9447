"""Exported graphs with the feed-forward op give in ONNX Runtime and ExecuTorch what the engine gives.

The libraries come from `make flash-doors`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handheld.runtime.flash import SessionOptions, open_pack
from handheld.runtime.flash.graph import flash_ffn, onnx_translation

from .conftest import Model

BUILT = Path(__file__).parents[3] / "build" / "flash-doors"
BUDGET = 8 << 20
TOKENS = 3


def library(name: str) -> Path:
    path = BUILT / f"libhandheld_flash_{name}.so"
    if not path.exists():
        pytest.skip(f"{path.name} is not built: run `make flash-doors`")
    return path


class Blocks(torch.nn.Module):
    """A transformer's feed-forward half, x + ffn(norm(x)), in every mode. Gives also what went into each op and
    what came out of it."""

    nodes = ((0, "dense"), (1, "exact"), (1, "selected"))

    def __init__(self, pack: str, d_model: int, budget_bytes: int = BUDGET) -> None:
        super().__init__()
        self.pack, self.budget_bytes = pack, budget_bytes
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(d_model) for _ in self.nodes)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        seen = []
        for norm, (layer, mode) in zip(self.norms, self.nodes, strict=True):
            normed = norm(x)
            output = flash_ffn(normed, self.pack, layer, mode, self.budget_bytes)  # type: ignore[arg-type]
            x = x + output
            seen += [normed, output]
        return [x, *seen]


@pytest.fixture(scope="module")
def chosen(make_model: Callable[..., Model]) -> Model:
    return make_model(seed=11, threshold=0.01, selector="ternary", selector_size=32)


@pytest.fixture(scope="module")
def x(chosen: Model) -> torch.Tensor:
    return torch.from_numpy(np.stack([chosen.x() for _ in range(TOKENS)]))


def run_onnx(module: torch.nn.Module, x: torch.Tensor, folder: Path) -> list[np.ndarray]:
    plugin = library("ort")
    path = folder / "graph.onnx"
    program = torch.onnx.export(
        module.eval(), (x,), dynamo=True, custom_translation_table=onnx_translation(), verbose=False
    )
    assert program is not None
    program.save(path)
    session = load_onnx(path, plugin)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def load_onnx(graph: Path | bytes, plugin: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(plugin))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_executorch(module: torch.nn.Module, x: torch.Tensor, folder: Path) -> list[np.ndarray]:
    from executorch.exir import to_edge
    from executorch.runtime import Runtime, Verification

    plugin = ctypes.CDLL(str(library("executorch")))
    program = to_edge(torch.export.export(module.eval(), (x,))).to_executorch()
    try:
        loaded = Runtime.get().load_program(program.buffer, verification=Verification.Minimal)
        method = loaded.load_method("forward")
        assert method is not None
        return [output.numpy().copy() for output in method.execute((x,))]
    finally:
        plugin.handheld_flash_close_sessions()


@pytest.mark.parametrize("run", [run_onnx, run_executorch], ids=["onnxruntime", "executorch"])
def test_an_exported_graph_gives_what_the_engine_gives(
    chosen: Model, x: torch.Tensor, tmp_path: Path, run: Callable[..., list[np.ndarray]]
) -> None:
    module = Blocks(str(chosen.path), chosen.spec.d_model)
    final, *seen = run(module, x, tmp_path)
    session = open_pack(chosen.path).session(SessionOptions(budget_bytes=BUDGET))
    expected = x
    for i, (layer, mode) in enumerate(module.nodes):
        normed, output = seen[2 * i], seen[2 * i + 1]
        same = [session.ffn(layer, token, mode) for token in normed]  # type: ignore[arg-type]
        np.testing.assert_array_equal(output, np.stack(same))
        expected = expected + torch.from_numpy(output)
        # A runtime adds up a norm in an order of its own.
        if i + 1 < len(module.nodes):
            wanted = module.norms[i + 1](expected).detach().numpy()
            np.testing.assert_allclose(seen[2 * i + 2], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(final, expected.numpy(), rtol=1e-6, atol=1e-6)
    assert not np.array_equal(final, x.numpy())


def test_eager_mode_runs_the_engine(chosen: Model, x: torch.Tensor) -> None:
    session = open_pack(chosen.path).session(SessionOptions(budget_bytes=BUDGET))
    expected = np.stack([session.ffn(0, token, "dense") for token in x.numpy()])
    batched = flash_ffn(x[None], str(chosen.path), 0, "dense", BUDGET)
    np.testing.assert_array_equal(batched.numpy(), expected[None])


def onnx_graph(*nodes: dict[str, Any]) -> bytes:
    from onnx import TensorProto, helper

    names = [f"t{i}" for i in range(len(nodes) + 1)]
    made = [
        helper.make_node("FlashFeedForward", [names[i]], [names[i + 1]], domain="handheld", **attributes)
        for i, attributes in enumerate(nodes)
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "d"]) for name in (names[0], names[-1])]
    graph = helper.make_graph(made, "graph", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("handheld", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"pack": "missing.flash"}, "missing.flash"),
        ({"mode": "fast"}, "fast.*dense, exact and selected"),
        ({"budget_bytes": 0}, "budget_bytes is 0"),
        ({"budget_bytes": 1000}, "below the floor"),
        ({"budget_bytes": BUDGET + 1}, "same budget_bytes"),
    ],
    ids=str,
)
def test_onnx_runtime_refuses_a_node_that_cannot_run(chosen: Model, wrong: dict[str, Any], words: str) -> None:
    plugin = library("ort")
    node = {"pack": str(chosen.path), "layer": 0, "mode": "exact", "budget_bytes": BUDGET}
    nodes = [node, {**node, **wrong}] if words.startswith("same") else [{**node, **wrong}]
    with pytest.raises(Exception, match=words):
        load_onnx(onnx_graph(*nodes), plugin)


def test_onnx_runtime_names_a_layer_or_a_width_that_the_pack_has_not(chosen: Model, x: torch.Tensor) -> None:
    plugin = library("ort")
    node = {"pack": str(chosen.path), "layer": 2, "mode": "exact", "budget_bytes": BUDGET}
    with pytest.raises(Exception, match="2 layers; the node asks for layer 2"):
        load_onnx(onnx_graph(node), plugin).run(None, {"t0": x.numpy()})
    with pytest.raises(Exception, match="last dimension of x is 32"):
        load_onnx(onnx_graph({**node, "layer": 0}), plugin).run(None, {"t0": x.numpy()[:, :32]})


def test_executorch_refuses_a_pack_that_is_not_there(chosen: Model, x: torch.Tensor, tmp_path: Path) -> None:
    library("executorch")
    with pytest.raises(RuntimeError):
        run_executorch(Blocks(str(tmp_path / "missing.flash"), chosen.spec.d_model), x, tmp_path)


def test_packs_are_found_below_the_folder_that_an_app_sets(chosen: Model, x: torch.Tensor) -> None:
    plugin = library("ort")
    node = {"pack": chosen.path.name, "layer": 0, "mode": "exact", "budget_bytes": BUDGET}
    door = ctypes.CDLL(str(plugin))
    door.handheld_flash_set_folder(str(chosen.path.parent).encode())
    try:
        outputs = load_onnx(onnx_graph(node), plugin).run(None, {"t0": x.numpy()})
    finally:
        door.handheld_flash_set_folder(None)
    session = open_pack(chosen.path).session(SessionOptions(budget_bytes=BUDGET))
    np.testing.assert_array_equal(outputs[0], np.stack([session.ffn(0, token, "exact") for token in x.numpy()]))
