"""Cuts for a memory budget: their sizes against the graphs' own, and that they decode."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from handheld.convert import TARGETS, ExportError
from handheld.convert.graph.rewrite import capture
from handheld.convert.streaming import Cut, PassCut, build
from handheld.convert.streaming.fit import fit
from handheld.convert.streaming.memory import UnitSizes, stream_size
from handheld.convert.streaming.overheads import OVERHEADS, Overhead, overhead_of
from handheld.convert.streaming.planner import Planner
from handheld.models import PRESETS, TurboVAEDecoder

FP32 = TARGETS["onnx"].precision("fp32")
# Nothing but what the graphs need.
BARE = Overhead(0, 0, 1.0, False, 1.0, False, 1.0, "made up")
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


def fewest() -> TurboVAEDecoder:
    """Six units."""
    config = replace(
        PRESETS["tiny"], latent_channels=4, decoder_block_out_channels=(32, 32), decoder_layers_per_block=(1, 1, 1)
    )
    with torch.device("meta"):
        return TurboVAEDecoder(config).eval()


@pytest.fixture(scope="module")
def sizes() -> UnitSizes:
    return UnitSizes(small(), HEIGHT, WIDTH, FP32)


@pytest.fixture(scope="module")
def few() -> UnitSizes:
    return UnitSizes(fewest(), 8, 2, FP32)


@pytest.fixture(scope="module")
def planner(few: UnitSizes) -> Planner:
    return Planner(few, FRAMES, BARE)


@pytest.mark.parametrize("strips", [1, 3])
def test_units_tell_what_segments_of_them_need(sizes: UnitSizes, strips: int) -> None:
    chunk, units = 4, sizes.segments(4)
    cuts = (PassCut((Cut(len(units) - 2, chunk),)), PassCut((Cut(2, chunk),), strips))
    plan, modules = build(sizes.model, cuts, HEIGHT, WIDTH)
    alone, segment = [sizes.of_unit(len(units) - n, chunk) for n in (2, 1)], sizes.of(modules[-1])
    part = plan.segments[-1].input[2] / units[-2].input[2]
    assert segment.weight_bytes == pytest.approx(sum(size.weight_bytes for size in alone), rel=0.01)
    assert segment.multiply_adds == pytest.approx(part * sum(size.multiply_adds for size in alone), rel=0.01)
    assert segment.inner_bytes == pytest.approx(part * max(size.inner_bytes for size in alone), rel=0.01)


def test_work_counts_rows_around_strips_and_frames_of_no_clip(few: UnitSizes) -> None:
    whole, stripped = (stream_size((PassCut((Cut(6, 4),), n),), FRAMES, few, BARE) for n in (1, 2))
    (segment,), (program,) = whole.plan.segments, whole.programs.values()
    assert whole.multiply_adds == segment.calls(FRAMES) * program.multiply_adds
    assert segment.calls(FRAMES) * 4 > FRAMES
    assert whole.recomputed == 0
    assert stripped.multiply_adds - stripped.recomputed == pytest.approx(whole.multiply_adds, rel=0.05)
    assert stripped.recomputed > 0.1 * whole.multiply_adds


def test_a_budget_is_kept_and_more_of_it_takes_fewer_passes_and_strips(planner: Planner) -> None:
    assert planner.fitting(900_000) is None
    pieces = []
    for budget in (1_200_000, 2_000_000):
        found = planner.fitting(budget)
        assert found is not None
        cuts, size = found
        assert 0.7 * budget < max(size.peak_bytes) < budget
        pieces.append(sum(part.strips for part in cuts))
        assert sum(cut.units for part in cuts for cut in part.cuts) == 6
        spatial = planner.sizes.model.spec.spatial
        assert size.plan.faults((4, 8, 2), (3, 8 * spatial, 2 * spatial)) == []
        assert size.plan.length(FRAMES) == planner.sizes.model.spec.frames(FRAMES)
    assert pieces[0] > 1
    assert pieces[1] == 1


def test_temporary_files_hold_the_frames_between_passes_and_strips(few: UnitSizes) -> None:
    found = stream_size((PassCut((Cut(1, 2),)), PassCut((Cut(5, 4),), strips=2)), FRAMES, few, BARE)
    spec = few.model.spec
    frame = 3 * 8 * 2 * spec.spatial**2
    assert found.spool_bytes == (4 * FRAMES * 32 * 8 * 2, 4 * spec.frames(FRAMES) * frame)
    assert found.temporary_bytes == sum(found.spool_bytes)
    assert replace(found, spool_bytes=(5, 1, 3, 3)).temporary_bytes == 6  # a pass's input goes with its end
    # Of the second pass: a window of a frame that is read, and two frames that the caller has.
    (segment,) = found.plan.passes[1].segments
    held = 4 * sum(math.prod(shape) for shape in (segment.input, segment.output, *segment.states, *segment.states))
    program = found.programs[segment.program]
    outputs = 4 * sum(math.prod(shape) for shape in (segment.output, *segment.states))
    assert program.written_bytes >= max(program.inner_bytes, outputs)  # at its end all outputs are there
    passing = 4 * (math.prod(segment.input[1:]) + 2 * frame)
    assert found.peak_bytes[1] == program.weight_bytes + held + program.inner_bytes + passing
    assert stream_size((PassCut((Cut(6, 4),)),), FRAMES, few, BARE).spool_bytes == (0,)


def test_causal_segments_keep_in_step() -> None:
    model = small(causal=True)
    found = Planner(UnitSizes(model, HEIGHT, WIDTH, FP32), FRAMES, BARE).fitting(10**9)
    assert found is not None
    (part,) = found[1].plan.passes
    for before, segment in zip(part.segments, part.segments[1:]):
        assert segment.chunk == before.output[0]


def test_the_peak_of_a_pass_adds_up() -> None:
    from handheld.convert.streaming.program_size import ProgramSize

    held = [(ProgramSize(10, 100, 150, 0, 0), 1000, 200), (ProgramSize(20, 300, 310, 0, 0), 4000, 500)]
    shares_outputs = Overhead(7, 1, 2.0, False, 1.0, False, 1.0, "made up")
    assert shares_outputs.peak_bytes(held) == 7 + 2 + 2 * 30 + 5000 + 700 + 500 + 300
    keeps_outputs = Overhead(7, 1, 1.0, True, 1.5, True, 1.0, "made up")
    assert keeps_outputs.peak_bytes(held) == 7 + 2 + 30 + 5000 + 700 + 700 + 1.5 * (150 + 310)


@pytest.mark.parametrize(
    ("inner", "most"),
    [
        ((100,), 100),
        ((100, 100, 100), 100),  # the same program
        ((100, 300), 400),
        ((300, 290), 590),  # too close to tell
        ((300, 100), 300),
        ((100, 300, 100, 300), 400),
    ],
)
def test_a_workspace_that_is_outgrown_counts_beside_the_new_one(inner: tuple[int, ...], most: int) -> None:
    assert Overhead(0, 0, 1.0, True, 1.0, True, 1.0, "made up").workspace_bytes(inner) == most
    assert Overhead(0, 0, 1.0, False, 1.0, False, 1.0, "made up").workspace_bytes(inner) == max(inner)


def test_the_peak_of_a_whole_clip_adds_up() -> None:
    graph = capture(nn.Conv2d(2, 3, 1), (torch.empty(1, 2, 4, 5, device="cpu"),))
    weights, activations = 4 * (3 * 2 + 3), 4 * (2 * 20 + 3 * 20)
    by_rule = Overhead(7, 1, 2.0, False, 1.5, False, 3.0, "made up").whole_clip_bytes(graph, torch.float32)
    assert by_rule == 7 + 1 + 2 * weights + 3 * activations
    by_arena = Overhead(7, 1, 2.0, False, 1.5, False, None, "made up").whole_clip_bytes(graph, torch.float32)
    assert by_arena == 7 + 1 + 2 * weights + 256 + 240  # a block of the arena, and the copy of the output


def test_fit_says_what_each_stage_takes_and_what_fits() -> None:
    found = fit(TurboVAEDecoder.from_preset("tiny"), (1, 48, 5, 32, 32), TARGETS["onnx"], 10**9)
    assert [stage.name for stage in found.stages] == ["conv_in", "mid_block", "up_blocks.0", "up_blocks.1", "tail"]
    weights, activations = sum(s.weight_bytes for s in found.stages), max(s.whole_bytes for s in found.stages)
    assert found.whole_bytes > overhead_of("onnxruntime").process_bytes + weights + activations
    assert (
        found.default.size.multiply_adds > found.whole_multiply_adds
    )  # frames of no clip, at the ends of segments
    assert found.proposal is not None
    assert found.proposal.peak_bytes <= 10**9
    states = sum(4 * s[0] * s[1] * s[2] * s[3] for seg in found.proposal.size.plan.segments for s in seg.states)
    assert sum(stage.state_bytes for stage in found.stages) == states


def test_fit_says_that_nothing_fits() -> None:
    nothing = OVERHEADS["onnxruntime"].process_bytes
    assert fit(TurboVAEDecoder.from_preset("tiny"), (1, 48, 5, 32, 32), TARGETS["onnx"], nothing).proposal is None


def test_a_runtime_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ExportError, match=r"What coreml takes .* has not been measured; it has for onnxruntime"):
        fit(TurboVAEDecoder.from_preset("tiny"), (1, 48, 5, 4, 4), TARGETS["ios"], 10**9)
