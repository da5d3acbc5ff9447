"""Decoders of the teachers through the targets' rewrites, and lowered: a small random checkpoint of each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import handheld
from handheld.convert import TARGETS
from handheld.convert.coreml.evaluator import with_reference
from handheld.convert.graph.rewrite import apply, capture
from handheld.models.teachers import load_teacher
from handheld.runtime.verify import verify

# fp32 sums in another order; frames are of order one.
TOLERANCE = 2e-5

FAMILIES = ("ltx", "embedded", "hunyuan", "cogvideox", "wan")

# Beside the frames-first targets, which share nearly all rewrites, the one that stacks frames.
REWRITTEN = ("android", "ios", "android-vulkan")


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
    assert not left


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


_SLOW = pytest.mark.slow


# A lowering takes ten seconds or more for the graphs of these decoders; one of them is in the fast suite.
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("ltx", ("onnx",)),
        *(pytest.param(n, ("onnx",), marks=_SLOW) for n in ("hunyuan", "cogvideox", "wan")),
        *(pytest.param(n, ("android", "ios"), marks=_SLOW) for n in ("ltx", "hunyuan", "cogvideox", "wan")),
        *(pytest.param(n, ("ios-executorch",), marks=_SLOW) for n in ("ltx", "hunyuan", "cogvideox", "wan")),
        *(pytest.param(n, ("ios27",), marks=_SLOW) for n in ("ltx", "hunyuan", "cogvideox", "wan")),
    ],
)
def test_a_folder_of_diffusers_is_exported_in_whole_delegates_and_verified(
    small_teacher_folder: Callable[[str], Path], name: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    for target in targets:
        if missing := TARGETS[target].missing():
            pytest.skip(f"needs {', '.join(missing)}")
    # The class in config.json says which teacher it is.
    latents = torch.randn(1, load_teacher(name, small_teacher_folder(name)).spec.channels, 3, 2, 3)
    bundle = handheld.export(small_teacher_folder(name), tmp_path / "b", targets=targets, example=latents)
    assert bundle.manifest.provenance["teacher"]["name"] == name
    for artifact in bundle.manifest.artifacts:
        if artifact.delegation is not None:
            assert artifact.delegation["delegates"] == 1
            assert not artifact.delegation["ops_outside"]
    verdicts = with_reference(bundle, verify(bundle))
    assert [(v.status, v.reason) for v in verdicts] == [("pass", "")] * len(targets)
