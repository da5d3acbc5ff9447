"""Names the op at which an artefact stops computing what its model does, for runtimes that run on this machine.

The model is captured and rewritten again, as its export did, which gives every op of the artefact a node with a
module, and on the golden input a value in fp32. What the artefact gives there is read at some ops first, then at
those between the last that agrees and the first that does not:

- ONNX: from a copy of the artefact's own model, with more outputs.
- Core ML: in the reference evaluator, which has a value of every operation.
- ExecuTorch: a delegate shows nothing of what it computes, so the graph is lowered again with more outputs. That
  finds what the lowering and the kernels do; an artefact that differs from its lowering is told as such.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from handheld.runtime.bundle import Bundle
from handheld.runtime.manifest import Artifact, Method, TensorSpec
from handheld.runtime.session import SESSIONS
from handheld.runtime.session.ort import MODEL

from .graph.capture import capture
from .graph.nodes import module_of
from .graph.rewrite import apply
from .lowering import lower
from .pixels import to_rgba8
from .quiet import quiet
from .target import Job, Target

# Largest difference over the largest value of an op's output. fp32 sums in another order stay below 1e-4, rounding
# to fp16 is 5e-4 each time; 8-bit values are off by a few percent where nothing is wrong.
_DIVERGED = {"fp32": 1e-3, "fp16": 0.05}
_DIVERGED_8_BIT = 0.25

# Ops that are read in one run.
_AT_ONCE = 24

# The smallest normal fp16: what is below may round to zero.
_TINY = torch.finfo(torch.float16).tiny

# In which an op can be named.
RUNTIMES = ("onnxruntime", "executorch", "coreml", "executorch-coreml")

# Names of ops -> what an artefact gives there; ops of which it has nothing are left out.
Read = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


def first_divergence(bundle: Bundle, artifact: Artifact, target: Target, model: nn.Module) -> str:
    """A sentence on where an artefact, of one shape and not streamed, leaves its model.

    Args:
        target: that the artefact was lowered by.
        model: the artefact's source, opened again.
    """
    if artifact.stream is not None or artifact.dynamic or artifact.runtime not in RUNTIMES:
        return "No op is named for a streamed or a dynamic artefact, nor in this runtime."
    inputs = tuple(torch.from_numpy(np.array(a)) for a in bundle.golden()[0].values())
    wanted = [torch.from_numpy(np.array(a)) for a in bundle.golden()[1].values()]
    with torch.no_grad():
        given = model.eval()(*inputs)
    if wanted[0].dtype == torch.uint8:  # of the frames there are only pixels
        given = to_rgba8(given, tuple(artifact.settings["value_range"]))
        off = ((given.float() - wanted[0].float()).abs() > 1).float().mean().item()
    else:
        off = _relative(given, wanted[0])
    if off > _DIVERGED["fp32"]:
        return f"Its source has changed since: what it computes now is off by {off:.1%}. Export it again."
    graph = capture(model, inputs)
    apply(graph, target.without(artifact.settings.get("without", ())).precision(artifact.precision).rewrites)
    if "coreml" in artifact.runtime:
        from .coreml.evaluator.verify import verify_coreml

        return verify_coreml(bundle, artifact, graph).reason
    with quiet():
        program = torch.export.export(graph, inputs)
    lowered = program.module(check_guards=False)
    values = _values(lowered, inputs)
    modules = _modules(graph, lowered)
    with tempfile.TemporaryDirectory(prefix="handheld-") as folder:
        if artifact.runtime == "onnxruntime":
            read = _onnx_reader(bundle.locate(artifact.path), inputs, artifact, Path(folder))
        else:
            read = _executorch_reader(target, lowered, inputs, artifact, Path(folder))
        found = _search(list(values), values, read, _DIVERGED.get(artifact.precision, _DIVERGED_8_BIT))
    return _text(found, modules, artifact)


def _text(found: tuple[str, float, bool] | None, modules: Mapping[str, str], artifact: Artifact) -> str:
    if found is None:
        return "No op of the artefact carries the name of one of the graph."
    name, off, diverged = found
    where = name + (f" of {modules[name]}" if modules.get(name) else "")
    if diverged:
        return f"The first op that diverges from the model is {where}, off by {off:.1%} of its largest value."
    again = " when its source is lowered again" if artifact.runtime == "executorch" else ""
    return (
        f"No op diverges by itself{again}; the largest difference is at {where}, {off:.2%}: errors add up, or the "
        + ("file is not what its source gives: export it again." if again else "output alone differs.")
    )


def _search(
    names: Sequence[str], wanted: Mapping[str, Tensor], read: Read, above: float
) -> tuple[str, float, bool] | None:
    """The first op that is off by more than `above`, else the one that is off most: name, how far, which."""
    off: dict[str, float] = {}
    low, high = 0, len(names)
    while low < high:
        some = names[low:high]
        step = max(1, -(-len(some) // _AT_ONCE))
        for name, value in read(some[step - 1 :: step]).items():
            found = torch.from_numpy(np.asarray(value, np.float32))
            if found.shape == wanted[name].shape:
                off[name] = _relative(found, wanted[name])
        wrong = [i for i in range(low, high) if not off.get(names[i], 0.0) <= above]
        if step == 1 or not off:
            break
        if wrong:
            high = wrong[0]
            low = max([i + 1 for i in range(low, high) if names[i] in off], default=low)
        else:
            break
    wrong_names = [name for name in names if not off.get(name, 0.0) <= above]
    if wrong_names:
        return wrong_names[0], off[wrong_names[0]], True
    most = max(off, key=off.__getitem__, default=None)
    return None if most is None else (most, off[most], False)


def _relative(found: Tensor, wanted: Tensor) -> float:
    if not wanted.numel():
        return 0.0
    return ((found.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp(min=_TINY)).item()


def _values(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What each op of a graph gives, by its name, in the graph's order."""
    values: dict[str, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, Tensor) and result.is_floating_point():
                values[n.name] = result
            return result

    with torch.no_grad():
        Recorder(graph).run(*inputs)
    return values


def _modules(graph: fx.GraphModule, exported: fx.GraphModule) -> dict[str, str]:
    """Module of each op of the graph that was exported anew: its ops are those of `graph`, in the same order."""
    before, after = ([n for n in g.graph.nodes if n.op == "call_function"] for g in (graph, exported))
    if [str(n.target) for n in before] != [str(n.target) for n in after]:
        return {}
    return {new.name: module_of(old) for old, new in zip(before, after)}


def _onnx_reader(path: Path, inputs: tuple[Tensor, ...], artifact: Artifact, folder: Path) -> Read:
    """Reads values of the artefact's own model. torch.onnx names them after the nodes of the graph."""
    import onnx
    import onnxruntime

    source = path / MODEL if path.is_dir() else path
    for weights in source.parent.glob(f"{source.name}.*"):
        shutil.copy(weights, folder)
    model = onnx.load(str(source), load_external_data=False)
    made = {name for node in model.graph.node for name in node.output}
    outputs = {output.name for output in model.graph.output}
    feed = {i.name: x.numpy().astype(artifact.input_dtype) for i, x in zip(model.graph.input, inputs)}

    def read(names: Sequence[str]) -> dict[str, np.ndarray]:
        some = [name for name in names if name in made and name not in outputs]
        tapped = onnx.ModelProto()
        tapped.CopyFrom(model)
        tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in some)
        (folder / source.name).write_bytes(tapped.SerializeToString())
        session = onnxruntime.InferenceSession(str(folder / source.name), providers=["CPUExecutionProvider"])
        return dict(zip(some, session.run(some, feed))) if some else {}

    return read


def _executorch_reader(
    target: Target, graph: fx.GraphModule, inputs: tuple[Tensor, ...], artifact: Artifact, folder: Path
) -> Read:
    """Lowers the graph again with the values that are asked for as its only outputs, and runs it."""

    def read(names: Sequence[str]) -> dict[str, np.ndarray]:
        tapped = copy.deepcopy(graph)
        nodes = {node.name: node for node in tapped.graph.nodes}
        taps = [nodes[name] for name in names]
        next(node for node in tapped.graph.nodes if node.op == "output").args = (tuple(taps),)
        # torch.export's own would give back one output.
        tapped.graph.set_codegen(fx.graph.CodeGen())
        tapped.graph.eliminate_dead_code()
        plain = fx.GraphModule(tapped, tapped.graph)
        with torch.no_grad():
            shapes = [tuple(value.shape) for value in plain(*inputs)]
        path = folder / target.filename
        lowered = lower(target, Job(plain, inputs, artifact.precision, path, inputs, output_names=tuple(names)))
        given = TensorSpec("latents", tuple(inputs[0].shape))
        one = SimpleNamespace(
            name=artifact.name,
            stream=None,
            methods=(Method(target.method, (given.shape,), tuple(shapes)),),
            input_dtype=lowered.input_dtype,
            output_dtype=lowered.output_dtype,
        )
        specs = [TensorSpec(name, shape) for name, shape in zip(names, shapes)]
        with SESSIONS[target.runtime](path, one, (given,), specs) as session:  # type: ignore[arg-type]
            return session.run({"latents": inputs[0].numpy()})

    return read
