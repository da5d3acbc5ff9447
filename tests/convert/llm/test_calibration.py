"""Thresholds, orders and selectors from a calibration text, and what the engine then does with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handheld.convert.llm import SELECTORS, Calibration, PackOptions, pack_model
from handheld.convert.llm.rounding import round_rows
from handheld.models.llm import open_checkpoint
from handheld.runtime.errors import RuntimeMissing
from handheld.runtime.flash import SessionOptions, open_pack
from handheld.runtime.flash.engine import load_native

pytest.importorskip("transformers", reason="needs the extra llm")

Save = Callable[..., Path]
TEXT = np.random.default_rng(0).integers(1, 384, (16, 64))
HELD_OUT = np.random.default_rng(1).integers(1, 384, (2, 64))


def observed(folder: Path, tokens: np.ndarray, active: float | None, layers: int = 1) -> Any:
    checkpoint = open_checkpoint(folder)
    calibration = Calibration(checkpoint, tokens, active)
    return [calibration.observe(checkpoint.layer(index)) for index in range(layers)][-1]


@pytest.fixture(scope="module")
def engine() -> None:
    try:
        load_native()
    except RuntimeMissing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("active", [0.1, 0.5])
def test_threshold_makes_the_asked_share_active(active: float, small_language_model: Save) -> None:
    layer = observed(small_language_model("llama"), TEXT, active, layers=2)
    assert float(layer.active.float().mean()) == pytest.approx(active, abs=1e-3)
    counts = layer.active.sum(0).numpy()[layer.order]
    assert (np.diff(counts) <= 0).all()
    assert counts[0] > counts[-1]


def test_relu_models_have_a_threshold_of_zero(small_language_model: Save) -> None:
    layer = observed(small_language_model("opt"), TEXT, None)
    assert layer.threshold == 0
    assert 0.2 < float(layer.active.float().mean()) < 0.8


@pytest.mark.parametrize("kind", SELECTORS)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_selectors_in_the_engine_find_more_than_chance(
    kind: str, name: str, small_language_model: Save, tmp_path: Path, engine: None
) -> None:
    folder = small_language_model(name)
    pack_model(open_checkpoint(folder), tmp_path / "p", PackOptions("fp32", selector=kind, active=0.25), TEXT)
    session = open_pack(tmp_path / "p").session(SessionOptions(1 << 26))
    layer = observed(folder, HELD_OUT, 0.25)
    hits = selected = 0
    for x, active in zip(layer.x.numpy(), layer.active.numpy(), strict=True):
        chosen = session.select(0, x)
        selected += len(chosen)
        hits += int(active[chosen].sum())
    neurons = layer.active.numel()
    # The threshold was set on another text.
    assert selected / neurons == pytest.approx(0.25, abs=0.08)
    # Chance finds a quarter.
    assert hits / int(layer.active.sum()) > {"ternary": 0.7, "low-rank": 0.35}[kind]


@pytest.mark.parametrize("kind", SELECTORS)
def test_exact_mode_computes_what_is_over_the_threshold(
    kind: str, small_language_model: Save, tmp_path: Path, engine: None
) -> None:
    folder = small_language_model("llama")
    pack_model(open_checkpoint(folder), tmp_path / "p", PackOptions("fp32", selector=kind, active=0.25), TEXT)
    layer = observed(folder, HELD_OUT, 0.25)
    calibrated = observed(folder, TEXT, 0.25)
    session = open_pack(tmp_path / "p").session(SessionOptions(1 << 26, window_tokens=1))
    for x, scores in zip(layer.x.numpy()[:20], layer.scores.numpy()[:20], strict=True):
        session.ffn(0, x, "exact")
        clear = np.abs(scores - calibrated.threshold) > 1e-4 * calibrated.threshold
        wanted = np.flatnonzero(scores > calibrated.threshold)
        assert set(np.flatnonzero(clear)) & set(wanted) == set(np.flatnonzero(clear)) & set(
            session.resident(0).tolist()
        )


@pytest.mark.parametrize(("lowest", "highest", "group"), [(-1, 2, 32), (-1, 2, 64), (-8, 8, 64)])
def test_rows_rounded_for_their_inputs_lose_less_than_nearest_codes(lowest: int, highest: int, group: int) -> None:
    rng = np.random.default_rng(2)
    mixing = rng.standard_normal((64, 64)) * np.exp(rng.standard_normal(64))
    x = (rng.standard_normal((2048, 64)) @ mixing).astype(np.float32)
    weights = rng.standard_normal((48, 64)).astype(np.float32)
    weights[5] = 0
    codes, scales = round_rows(weights, torch.from_numpy(x.T @ x / len(x)), group, lowest, highest)
    assert codes.min() >= lowest
    assert codes.max() <= highest
    steps = scales.astype(np.float32).repeat(group, axis=1)
    nearest = np.rint(weights / np.where(steps == 0, 1, steps)).clip(lowest, highest) * steps
    errors = [np.square(x @ (weights - rounded).T).mean() for rounded in (codes * steps, nearest)]
    assert errors[0] < 0.6 * errors[1]
    assert not codes[5].any()


def test_low_rank_selector_is_the_best_linear_one(small_language_model: Save) -> None:
    """With all ranks, what it predicts is the ridge regression's own prediction."""
    folder = small_language_model("llama")
    layer = observed(folder, TEXT, 0.25)
    selector = SELECTORS["low-rank"].fit(open_checkpoint(folder).layer(0), layer, 64, 0.25)
    assert selector.a is not None
    assert selector.b is not None
    x, wanted = layer.x.double(), layer.active.double()
    centred = x - x.mean(0)
    gram = centred.T @ centred
    gram += 1e-2 * gram.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    weights = torch.linalg.solve(gram, centred.T @ (wanted - wanted.mean(0)))
    predicted = centred @ weights + wanted.mean(0)
    found = layer.x.numpy() @ selector.a.T.astype(np.float32) @ selector.b.T.astype(np.float32) + selector.bias
    np.testing.assert_allclose(found, predicted.numpy(), atol=5e-3)
