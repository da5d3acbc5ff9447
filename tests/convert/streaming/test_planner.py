"""Cuts for a memory budget: their sizes against the graphs' own, and that they decode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from handheld.convert import TARGETS, ExportError
from handheld.convert.memory import peak_memory, weight_bytes
from handheld.convert.rewrite import apply, capture
from handheld.convert.streaming import Cut, PassCut, build
from handheld.convert.streaming.fit import fit
from handheld.convert.streaming.memory import UnitSizes, meta_inputs, stream_size
from handheld.convert.streaming.overheads import OVERHEADS, Overhead, overhead_of
from handheld.convert.streaming.planner import Planner
from handheld.models import PRESETS, TurboVAEDecoder

FP32 = TARGETS["onnx"].precision("fp32")
# Nothing but what the graphs need.
BARE = Overhead(0, 0, 1.0, 0.0, 1.0, False, "made up")
HEIGHT, WIDTH, FRAMES = 6, 4, 6


def small(*, causal: bool = False) -> TurboVAEDecoder:
    """The released structure with few channels: every kind of unit, two temporal upsamplers."""
    config = replace(
        PRESETS["ltx"],
        latent_channels=8,
        decoder_block_out_channels=(32, 40, 48, 56),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        decoder_causal=causal,
    )
    with torch.device("meta"):
        return TurboVAEDecoder(config).eval()


@pytest.fixture(scope="module")
def sizes() -> UnitSizes:
    return UnitSizes(small(), HEIGHT, WIDTH, FP32)


@pytest.fixture(scope="module")
def planner(sizes: UnitSizes) -> Planner:
    return Planner(sizes, FRAMES, BARE)


@pytest.mark.parametrize("strips", [1, 3])
def test_sizes_of_segments_are_those_of_their_own_graphs(sizes: UnitSizes, strips: int) -> None:
    units = len(sizes.segments(1))
    cuts = (PassCut((Cut(4, 2), Cut(units - 6, 4), Cut(2, 8)), strips),)
    plan, modules = build(sizes.model, cuts, HEIGHT, WIDTH)
    for segment, module in zip(plan.segments, modules):
        graph = capture(module, meta_inputs(segment))
        apply(graph, FP32.rewrites)
        found = sizes.of(segment)
        # Which form of a convolution is chosen, and so what its weights are, is bounded by the memory of the whole
        # graph: in a segment of several units more of them get the larger form.
        assert found.weight_bytes == pytest.approx(weight_bytes(graph), rel=0.2)
        # Never too little; a unit alone also turns its input into another layout.
        inner = peak_memory(graph, inner=True).size_bytes
        assert inner <= found.inner_bytes <= 1.25 * inner


def test_a_budget_is_kept_and_more_of_it_never_takes_more_passes_and_strips(planner: Planner) -> None:
    smallest = None
    before = 0
    for budget in (1_000_000, 9_000_000, 12_000_000, 20_000_000, 1_000_000_000):
        found = planner.fitting(budget)
        if found is None:
            assert smallest is None, "a larger budget than one that was enough"
            continue
        cuts, size = found
        assert max(size.peak_bytes) <= budget
        pieces = sum(part.strips for part in cuts)
        smallest = smallest or pieces
        assert before == 0 or pieces <= before
        before = pieces
    assert smallest is not None
    assert smallest > 1
    assert before == 1


def test_a_plan_covers_all_units_and_is_valid(planner: Planner) -> None:
    found = planner.fitting(15_000_000)
    assert found is not None
    cuts, size = found
    assert sum(cut.units for part in cuts for cut in part.cuts) == len(planner.sizes.segments(1))
    spatial = planner.sizes.model.spec.spatial
    assert size.plan.faults((8, HEIGHT, WIDTH), (3, HEIGHT * spatial, WIDTH * spatial)) == []
    assert size.plan.length(FRAMES) == planner.sizes.model.spec.frames(FRAMES)


def test_temporary_files_hold_the_frames_between_passes_and_strips(sizes: UnitSizes) -> None:
    units = len(sizes.segments(1))
    cuts = (PassCut((Cut(1, 2),)), PassCut((Cut(units - 1, 4),), strips=2))
    found = stream_size(cuts, FRAMES, sizes, BARE)
    spec = sizes.model.spec
    frame = 3 * HEIGHT * WIDTH * spec.spatial**2
    assert found.spool_bytes == (4 * FRAMES * 56 * HEIGHT * WIDTH, 4 * spec.frames(FRAMES) * frame)
    whole = stream_size((PassCut((Cut(units, 4),)),), FRAMES, sizes, BARE)
    assert whole.spool_bytes == (0,)


def test_causal_segments_keep_in_step() -> None:
    model = small(causal=True)
    found = Planner(UnitSizes(model, HEIGHT, WIDTH, FP32), FRAMES, BARE).fitting(10**9)
    assert found is not None
    (part,) = found[1].plan.passes
    for before, segment in zip(part.segments, part.segments[1:]):
        assert segment.chunk == before.output[0]


def test_the_peak_of_a_pass_adds_up() -> None:
    from handheld.convert.streaming.memory import ProgramSize

    held = [(ProgramSize(10, 100, 0, 0), 1000, 200), (ProgramSize(20, 300, 0, 0), 4000, 500)]
    takes_turns = Overhead(7, 1, 2.0, 0.0, 1.0, False, "made up")
    assert takes_turns.peak_bytes(held) == 7 + 2 + 2 * 30 + 5000 + 700 + 500 + 300
    keeps_all = Overhead(7, 1, 1.0, 1.0, 1.5, True, "made up")
    assert keeps_all.peak_bytes(held) == 7 + 2 + 30 + 5000 + 700 + 500 + (5000 + 2 * 700) + 600


def test_fit_says_what_each_stage_takes_and_what_fits() -> None:
    found = fit(PRESETS["tiny"], (1, 48, 5, 32, 32), TARGETS["onnx"], 10**9)
    assert [stage.name for stage in found.stages] == ["conv_in", "mid_block", "up_blocks.0", "up_blocks.1", "tail"]
    whole = max(stage.whole_bytes for stage in found.stages)
    overhead = overhead_of("onnxruntime")
    assert found.whole_bytes == overhead.whole_clip_bytes(sum(s.weight_bytes for s in found.stages), whole)
    assert found.proposal is not None
    assert found.proposal.peak_bytes <= 10**9
    states = sum(4 * s[0] * s[1] * s[2] * s[3] for seg in found.proposal.size.plan.segments for s in seg.states)
    assert sum(stage.state_bytes for stage in found.stages) == states


def test_fit_says_that_nothing_fits() -> None:
    nothing = OVERHEADS["onnxruntime"].process_bytes
    assert fit(PRESETS["tiny"], (1, 48, 5, 32, 32), TARGETS["onnx"], nothing).proposal is None


def test_a_runtime_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ExportError, match=r"What coreml takes .* has not been measured; it has for onnxruntime"):
        fit(PRESETS["tiny"], (1, 48, 5, 4, 4), TARGETS["ios"], 10**9)
