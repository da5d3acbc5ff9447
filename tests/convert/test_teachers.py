"""Decoders of the teachers through the targets' rewrites, and lowered: a small random checkpoint of each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handheld.convert import TARGETS
from handheld.convert.graph.rewrite import apply, capture
from handheld.convert.lowering import lower, rewritten_for
from handheld.convert.target import Job
from handheld.models.teachers import load_teacher

# fp32 sums in another order; frames are of order one.
TOLERANCE = 2e-5

FAMILIES = ("ltx", "embedded", "hunyuan", "cogvideox", pytest.param("wan", marks=pytest.mark.slow))

# Beside the frames-first targets, which share nearly all rewrites, the one that stacks frames.
REWRITTEN = ("android", "ios", "android-vulkan")

# What a target's limits still name, with the reason. Nothing convolutional.
EXCEPTIONS: dict[str, set[str]] = {
    # Products of attention in mid blocks: facts of XNNPACK's partitioner decide, in the delegate or beside it.
    "android": {"aten::bmm"},
}


@pytest.fixture(scope="module")
def decoder(small_teacher_folder: Callable[[str], Path]) -> Callable[[str], tuple[nn.Module, Tensor]]:
    def get(name: str) -> tuple[nn.Module, Tensor]:
        teacher = load_teacher(name, None if name == "embedded" else small_teacher_folder(name))
        # Chunked decoders: enough frames for a second chunk, which reads the caches.
        frames = 3 if name in ("cogvideox", "wan") else 2
        shape = (1, teacher.spec.channels, frames, 2, 3)
        return teacher.decoder_module(), torch.randn(shape, generator=torch.Generator().manual_seed(0))

    return get


@pytest.mark.parametrize("target", REWRITTEN)
@pytest.mark.parametrize("name", FAMILIES)
def test_rewritten_decoder_is_the_same_function_and_nothing_is_left_that_the_target_does_not_take(
    decoder: Callable[[str], tuple[nn.Module, Tensor]], name: str, target: str
) -> None:
    module, latents = decoder(name)
    graph = capture(module, (latents,))
    precision = TARGETS[target].precision("fp32")
    apply(graph, precision.rewrites)
    with torch.no_grad():
        assert (graph(latents) - module(latents)).abs().max() < TOLERANCE
    limits = TARGETS[target].limits
    assert limits is not None
    left = {
        node.target._schema.name: found.reason
        for node in graph.graph.nodes
        if node.op == "call_function" and hasattr(node.target, "_schema")
        if (found := limits(node, precision.dtype)) and found.blocks
    }
    assert left.keys() <= EXCEPTIONS.get(target, set()), left


def test_a_decoder_that_runs_chunk_by_chunk_keeps_its_weights_once(
    decoder: Callable[[str], tuple[nn.Module, Tensor]],
) -> None:
    module, latents = decoder("cogvideox")
    held: list[int] = []
    for frames in (3, 5):
        graph = capture(module, (latents[:, :, :1].expand(-1, -1, frames, -1, -1).contiguous(),))
        apply(graph, TARGETS["ios"].precision("fp32").rewrites)
        held.append(sum(t.numel() for t in [*graph.parameters(), *graph.buffers()]))
    # One more chunk adds no weights; what it may add are a few numbers of norms over a chunk of another length.
    assert held[1] < held[0] + 1000


@pytest.mark.slow
@pytest.mark.parametrize("target", ["android", "ios", "onnx"])
@pytest.mark.parametrize("name", ["ltx", "embedded", "hunyuan", "cogvideox", "wan"])
def test_decoder_is_lowered(
    decoder: Callable[[str], tuple[nn.Module, Tensor]], name: str, target: str, tmp_path: Path
) -> None:
    chosen = TARGETS[target]
    if missing := chosen.missing():
        pytest.skip(f"needs {', '.join(missing)}")
    module, latents = decoder(name)
    with torch.no_grad():
        frames = module(latents)
    precision = chosen.precision(chosen.default_precision)
    rewritten = rewritten_for(chosen, precision, module, (latents,), (frames,), lambda step: None)
    path = tmp_path / chosen.filename
    lowered = lower(chosen, Job(rewritten.graph, (latents,), chosen.default_precision, path, (latents,)))
    assert path.exists()
    outside: dict[str, Any] = dict((lowered.delegation or {}).get("ops_outside", {}))  # type: ignore[call-overload]
    assert not [op for op in outside if "conv" in op]
