"""Every rewrite on its cases: how often it applies, what it refuses and why, and the same function before and
after, in eager mode and lowered by every target that has it.

A new rewrite or target comes in by being in its table. In the real runtime some cases of one target and precision
are one artefact, which takes and gives them as one vector: lowering costs seconds whatever it lowers, and more than
twice as long for twice as many. Precisions of fewer bits keep the ends in fp32: they lower a small decoder instead,
with each target's whole list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from handheld.convert import TARGETS
from handheld.convert.choice.choose import rewrites_of
from handheld.convert.coreml.evaluator import evaluate, load_program
from handheld.convert.graph.capture import capture
from handheld.convert.graph.rewrite import Case, GraphPass, Rewrite, apply, max_rank
from handheld.convert.rewrites import REWRITES, conv3d_taps
from handheld.convert.rewrites.cases import conv3d
from handheld.convert.target import Job, Lowered, Target
from handheld.runtime.manifest import Method, RewriteRecord, TensorSpec
from handheld.runtime.session import SESSIONS

# fp32 sums in another order; outputs are of order one.
EAGER_TOLERANCE = 1e-5

# Cases in one artefact.
TOGETHER = 12

HIGHEST_RANK = 5


@dataclass(frozen=True)
class Trial:
    """A case before and after a rewrite, on seeded weights and inputs.

    Attributes:
        x: fp32 input of the case's shape.
        before: what the module gives for it.
        graph: the rewritten graph.
        records: what each rewrite did.
    """

    name: str
    x: Tensor
    before: Tensor
    graph: fx.GraphModule
    records: tuple[RewriteRecord, ...]

    @property
    def record(self) -> RewriteRecord:
        (record,) = self.records
        return record

    @property
    def eager_error(self) -> float:
        with torch.no_grad():
            return (self.graph(self.x) - self.before).abs().max().item()


def trial(passes: Sequence[GraphPass], case: Case) -> Trial:
    torch.manual_seed(0)
    model = case.build().eval()
    x = torch.randn(case.shape)
    graph = capture(model, (x,))
    records = tuple(apply(graph, tuple(passes)))
    with torch.no_grad():
        return Trial(case.name, x, model(x), graph, records)


def trial_of(rewrite: Rewrite, case: Case) -> Trial:
    found = trial((rewrite,), case)
    return replace(found, name=f"{rewrite.name}: {case.name}")


class Together(nn.Module):
    """Trials in one graph: their inputs end to end (L,) -> their outputs end to end (L',)."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        super().__init__()
        # As plain graph modules: an exported one has no `train`, which torch.export's caller goes through.
        self.graphs = nn.ModuleList(fx.GraphModule(one.graph, one.graph.graph) for one in trials)
        self.shapes = [one.x.shape for one in trials]

    def forward(self, latents: Tensor) -> Tensor:
        parts = latents.split([math.prod(shape) for shape in self.shapes])
        outputs = [graph(x.reshape(shape)) for graph, x, shape in zip(self.graphs, parts, self.shapes)]
        return torch.cat([y.reshape(-1) for y in outputs])


@dataclass(frozen=True)
class Distance:
    """How far a lowered trial is from the eager module: largest difference, and PSNR at the outputs' range."""

    error: float
    psnr_db: float


def distances(
    target: Target, precision: str, trials: Sequence[Trial], folder: Path
) -> tuple[dict[str, Distance], Lowered]:
    """Per trial, the lowered rewritten graph against the eager module; and what lowering told.

    In the target's own runtime; in the reference evaluator for Core ML.
    """
    latents = torch.cat([one.x.flatten() for one in trials])
    path = folder / target.filename
    graph = capture(Together(trials), (latents,))
    lowered = target.lower(Job(graph, (latents,), precision, path, (latents,)))
    arrays = {"latents": latents.numpy()}
    if target.runtime == "coreml":
        frames = evaluate(load_program(path), arrays).outputs["frames"]
    else:
        length = sum(one.before.numel() for one in trials)
        artifact = SimpleNamespace(
            name="parity",
            stream=None,
            methods=(Method(target.method, (tuple(latents.shape),), ((length,),)),),
            input_dtype=lowered.input_dtype,
            output_dtype=lowered.output_dtype,
            dynamic=(),
        )
        inputs, outputs = TensorSpec("latents", tuple(latents.shape)), TensorSpec("frames", (length,))
        with SESSIONS[target.runtime](path, artifact, (inputs,), (outputs,), 1) as session:
            frames = session.run(arrays)["frames"]
    parts = torch.from_numpy(np.array(frames)).split([one.before.numel() for one in trials])
    return {one.name: distance(part, one.before.flatten()) for one, part in zip(trials, parts)}, lowered


def distance(given: Tensor, wanted: Tensor) -> Distance:
    difference = (given - wanted).double()
    peak, noise = (wanted.max() - wanted.min()).item(), difference.square().mean().item()
    return Distance(difference.abs().max().item(), 10 * math.log10(peak**2 / noise) if noise else math.inf)


def skip_where_it_cannot_run(target: Target) -> None:
    if missing := target.missing():
        pytest.skip(f"needs {', '.join(missing)}")
    if target.runtime != "coreml" and (reason := SESSIONS[target.runtime].unavailable()):
        pytest.skip(reason)


def faults(target: Target, precision: str, found: dict[str, Distance]) -> dict[str, str]:
    """The trials whose distance the target's own tolerance does not allow."""
    tolerance = target.precision(precision).tolerance
    return {name: fault for name, one in found.items() if (fault := tolerance.fault(one.error, one.psnr_db))}


def lowerings() -> list[tuple[str, str, tuple[Rewrite, ...]]]:
    """Each target and floating-point precision with the rewrites of it that no earlier one of the target had."""
    rows = []
    plain = {rewrite.name: rewrite for rewrite in REWRITES}  # a target may apply one at some places only
    for target in TARGETS.values():
        seen: set[str] = set()
        for name, precision in target.precisions.items():
            new = tuple(plain[r.name] for r in rewrites_of(precision.rewrites) if r.name not in seen)
            if new and name.startswith("fp"):
                rows.append((target.name, name, new))
                seen |= {rewrite.name for rewrite in new}
    return rows


def named(attribute: str) -> pytest.MarkDecorator:
    pairs = [(rewrite, case) for rewrite in REWRITES for case in getattr(rewrite, attribute)]
    return pytest.mark.parametrize(
        ("rewrite", "case"), pairs, ids=[f"{rewrite.name}-{case.name}" for rewrite, case in pairs]
    )


@named("cases")
def test_rewrite_applies_and_keeps_the_function(rewrite: Rewrite, case: Case) -> None:
    found = trial_of(rewrite, case)
    assert found.record.applied == case.applied
    assert not found.record.refused
    assert found.eager_error < EAGER_TOLERANCE


@named("near_misses")
def test_near_miss_stays_untouched_for_the_stated_reason(rewrite: Rewrite, case: Case) -> None:
    found = trial_of(rewrite, case)
    assert found.record.applied == 0
    assert found.eager_error == 0
    assert bool(found.record.refused) == bool(case.refused)
    assert all(case.refused in refusal.reason for refusal in found.record.refused)


def test_every_rewrite_of_every_target_is_in_the_table_that_is_tested() -> None:
    used = {
        r.name for target in TARGETS.values() for p in target.precisions.values() for r in rewrites_of(p.rewrites)
    }
    assert used <= {rewrite.name for rewrite in REWRITES}


def lowered_cases() -> list[Any]:
    """Parameters: a lowering of `lowerings`, and how many cases of each rewrite.

    ExecuTorch takes seconds to lower a layer, and Core AI's target has the rewrites of Core ML's: there, one case
    of each rewrite is for every day, and all are slow. Where another target of Core ML has the same rewrites, as
    `ios` and `ios16` have, those of the first are for every day.
    """
    rows = []
    known = set()
    for target, precision, rewrites in lowerings():
        same = TARGETS[target].runtime, precision, tuple(rewrite.name for rewrite in rewrites)
        if same in known and TARGETS[target].runtime == "coreml":
            rows.append(
                pytest.param(target, precision, rewrites, None, marks=pytest.mark.slow, id=f"{target}-{precision}")
            )
            continue
        known.add(same)
        name, all_slow = f"{target}-{precision}", TARGETS[target].runtime in ("executorch", "coreai")
        marks = [pytest.mark.slow] if all_slow else []
        rows.append(pytest.param(target, precision, rewrites, None, id=name, marks=marks))
        if all_slow:
            rows.append(pytest.param(target, precision, rewrites, 1, id=f"{name}-first"))
    return rows


@pytest.mark.parametrize(("target", "precision", "rewrites", "cases"), lowered_cases())
def test_rewritten_cases_compute_the_same_in_the_targets_runtime(
    target: str, precision: str, rewrites: tuple[Rewrite, ...], cases: int | None, tmp_path: Path
) -> None:
    skip_where_it_cannot_run(TARGETS[target])
    # The target's own list follows: what one rewrite leaves may need another before the runtime takes it.
    after = TARGETS[target].precision(precision).rewrites
    trials = [
        replace(trial((rewrite, *after), case), name=f"{rewrite.name}: {case.name}")
        for rewrite in rewrites
        for case in rewrite.cases[:cases]
    ]
    # A case that the list leaves at rank 6 is no clip, and the list is for clips: Core ML takes rank 5 at most.
    trials = [one for one in trials if max_rank(one.graph) <= HIGHEST_RANK]
    for first in range(0, len(trials), TOGETHER):
        (folder := tmp_path / str(first)).mkdir()
        found, _ = distances(TARGETS[target], precision, trials[first : first + TOGETHER], folder)
        assert faults(TARGETS[target], precision, found) == {}


# The harness itself: rewrites that compute something else.


def _taps_in_the_wrong_order(graph, match):
    flipped = copy(graph)
    flipped.value = lambda node: graph.value(node).flip(2)
    return conv3d_taps.REWRITE.replace(flipped, match)


def _a_scale_off_by_one_percent(graph, match):
    return graph.call(torch.ops.aten.mul.Tensor, conv3d_taps.REWRITE.replace(graph, match), 1.01)


WRONG = tuple(
    replace(conv3d_taps.REWRITE, name=wrong.__name__, replace=wrong)
    for wrong in (_taps_in_the_wrong_order, _a_scale_off_by_one_percent)
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda rewrite: rewrite.name)
def test_a_wrong_rewrite_fails_the_eager_comparison(wrong: Rewrite) -> None:
    found = trial_of(wrong, wrong.cases[0])
    assert found.record.applied == 1
    assert found.eager_error > EAGER_TOLERANCE


@pytest.mark.parametrize("target", list(TARGETS))
def test_wrong_rewrites_fail_the_lowered_comparison_and_a_right_one_beside_them_does_not(
    target: str, tmp_path: Path
) -> None:
    skip_where_it_cannot_run(TARGETS[target])
    trials = [trial_of(rewrite, rewrite.cases[0]) for rewrite in (conv3d_taps.REWRITE, *WRONG)]
    found, _ = distances(TARGETS[target], "fp32", trials, tmp_path)
    assert list(faults(TARGETS[target], "fp32", found)) == [wrong.name for wrong in trials[1:]]


# Precisions of fewer bits: the whole list, on layers of which the middle one is no exemption and large enough.


def decoder() -> nn.Module:
    return nn.Sequential(conv3d(8, 64, 3)(), nn.ReLU(), conv3d(64, 64, 3)(), nn.ReLU(), conv3d(64, 3, 3)())


def smaller_precisions() -> list:
    """Each target and precision beyond floating point; by default one of each target, as palettes take long."""
    rows = []
    for target in TARGETS.values():
        names = [name for name in target.precisions if not name.startswith("fp")]
        for name in names:
            marks = [] if name == names[0] else [pytest.mark.slow]
            rows.append(pytest.param(target.name, name, id=f"{target.name}-{name}", marks=marks))
    return rows


@pytest.mark.parametrize(("target", "precision"), smaller_precisions())
def test_fewer_bits_keep_to_their_tolerance_and_a_wrong_rewrite_beside_them_does_not(
    target: str, precision: str, tmp_path: Path, skip_where_8_bit_sums_saturate: Callable[[Target], None]
) -> None:
    skip_where_it_cannot_run(TARGETS[target])
    skip_where_8_bit_sums_saturate(TARGETS[target])
    passes = TARGETS[target].precision(precision).rewrites
    trials = [
        trial(passes, Case("right", decoder, (1, 8, 8, 8, 8))),
        trial((WRONG[0], *passes), Case("taps in the wrong order", decoder, (1, 8, 8, 8, 8))),
    ]
    found, lowered = distances(TARGETS[target], precision, trials, tmp_path)
    assert list(faults(TARGETS[target], precision, found)) == ["taps in the wrong order"]
    small = lowered.settings.get("quantized", {}).get("convolutions", 0)
    small += lowered.settings.get("weights", {}).get("compressed", 0)
    small += sum(n for op, n in lowered.settings.get("operations", {}).items() if op.startswith("constexpr"))
    assert small >= 2  # of each trial, a layer
