"""The native selectors choose what their definition chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from handheld.runtime.flash import MOST, UNLIMITED, FlashError, open_pack
from handheld.runtime.flash.quantise import decode_ternary

from .conftest import Model
from .test_results import LAYERS, TOLERANCE, open_session


def tensors(model: Model, layer: int) -> dict[str, np.ndarray]:
    prefix = f"flash.{layer}."
    every = load_file(model.path / "resident.safetensors")
    return {name[len(prefix) :]: array for name, array in every.items() if name.startswith(prefix)}


def low_rank_scores(model: Model, x: np.ndarray) -> np.ndarray:
    stored = tensors(model, 0)
    hidden = stored["selector.a"].astype(np.float32) @ x
    return stored["selector.b"].astype(np.float32) @ hidden + stored["selector.bias"]


def ternary_scores(model: Model, x: np.ndarray) -> np.ndarray:
    stored, spec = tensors(model, 0), model.spec
    # The engine rounds x to 8 bits per group before it meets ternary rows.
    steps = np.abs(x.reshape(-1, spec.selector_size)).max(axis=1, keepdims=True) / 127
    rounded = (np.rint(x.reshape(steps.shape[0], -1) / steps) * steps).ravel()
    parts = np.split(stored["selector.rows"], 2 if spec.gated else 1, axis=1)
    products = [decode_ternary(part, spec.d_model, spec.selector_size) @ rounded for part in parts]
    first = products[0]
    active = np.maximum(first, 0) if spec.activation == "relu" else first / (1 + np.exp(-first))
    noise = stored.get("selector.noise", np.zeros((spec.d_ff, 2)))
    energy = active**2 + noise[:, 0]
    if spec.gated:
        energy *= products[1] ** 2 + noise[:, 1]
    return np.sqrt(energy) * stored["importance"]


def check_choice(model: Model, chosen: np.ndarray, scores: np.ndarray, cut: float) -> None:
    """All clearly above the cut, nothing clearly below: sums in another order differ in the last bits."""
    order = tensors(model, 0)["order"]
    margin = 1e-4 * max(1.0, float(np.abs(scores).max()))
    assert set(order[scores > cut + margin].tolist()) <= set(chosen.tolist())
    assert set(chosen.tolist()) <= set(order[scores > cut - margin].tolist())


@pytest.mark.parametrize("kernels", ["portable", "auto"])
def test_low_rank_selects_scores_above_the_threshold(make_model: Callable[..., Model], kernels: str) -> None:
    model = make_model(selector="low_rank", selector_size=32)
    session = open_session(model, kernels=kernels)
    for _ in range(5):
        x = model.x()
        chosen = session.select(0, x)
        assert 0 < len(chosen) < model.spec.d_ff
        check_choice(model, chosen, low_rank_scores(model, x), 0.5)


@pytest.mark.parametrize("kernels", ["portable", "auto"])
@pytest.mark.parametrize("kind", ["swiglu", "reglu", "opt"])
def test_ternary_rows_select_by_the_estimated_activation(
    make_model: Callable[..., Model], kind: str, kernels: str
) -> None:
    fields: dict[str, Any] = {**LAYERS[kind], "up_bias": False}
    model = make_model(selector="ternary", selector_size=32, **fields)
    session = open_session(model, kernels=kernels)
    for _ in range(5):
        x = model.x()
        chosen = session.select(0, x)
        assert 0 < len(chosen) < model.spec.d_ff
        check_choice(model, chosen, ternary_scores(model, x), 0.05)


@pytest.mark.parametrize("kind", ["swiglu", "reglu"])
def test_the_gate_decides_as_whole_scores_would(make_model: Callable[..., Model], kind: str) -> None:
    model = make_model(selector="ternary", selector_size=32, d_model=1024, d_ff=800, **LAYERS[kind])
    brief, whole = open_session(model), open_session(model, gate_first=False)
    for _ in range(4):
        x = model.x()
        np.testing.assert_array_equal(brief.select(0, x), whole.select(0, x))


def test_an_up_product_far_beyond_all_others_is_not_foreseen(make_model: Callable[..., Model]) -> None:
    """So the gate does decide; of random neurons none is like that."""
    model = make_model(selector="ternary", selector_size=32, d_model=1024, d_ff=800, **LAYERS["reglu"])
    brief, whole = open_session(model), open_session(model, gate_first=False)
    unforeseen = 0
    for neuron in range(40):
        row = model.layers[0].given.up[neuron]
        x = row * np.float32(32 / np.linalg.norm(row))  # as long as a random vector, and all of it along one row
        missed = set(whole.select(0, x).tolist()) - set(brief.select(0, x).tolist())
        assert missed <= {neuron}
        unforeseen += len(missed)
    assert unforeseen > 0


@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize("computes_resident", [True, False])
def test_the_gate_decides_about_misses_as_whole_scores_would(
    make_model: Callable[..., Model], neighbours: bool, computes_resident: bool
) -> None:
    model = make_model(selector="ternary", selector_size=32, d_model=1024, d_ff=800, dtype="int4")
    # Room for all: what is in memory does not depend on how recently it counted.
    options: dict[str, Any] = {
        "miss_weight": 0.3,
        "pinned_neurons": 30,
        "window_tokens": UNLIMITED,
        "neighbours": neighbours,
        "compute_resident": computes_resident,
    }
    brief, whole = (open_session(model, gate_first=first, **options) for first in (True, False))
    for _ in range(5):
        x = model.x()
        np.testing.assert_array_equal(brief.ffn(0, x), whole.ffn(0, x))
        assert brief.resident(0).tolist() == whole.resident(0).tolist()
    assert 0 < brief.stats().neurons_loaded == whole.stats().neurons_loaded
    # In memory and computed in any case, a neuron is selected by its gate alone.
    assert (brief.stats().neurons_selected != whole.stats().neurons_selected) == computes_resident


def test_a_share_takes_the_best_scores(make_model: Callable[..., Model]) -> None:
    model = make_model(selector="ternary", selector_size=64)
    session = open_session(model, select_share=0.3)
    x = model.x()
    chosen = session.select(0, x)
    assert len(chosen) == 30
    scores = ternary_scores(model, x)
    check_choice(model, chosen, scores, float(np.sort(scores)[-31]))


def test_selected_mode_runs_with_the_selector(make_model: Callable[..., Model]) -> None:
    model = make_model(selector="ternary", selector_size=32)
    session = open_session(model, compute_resident=False)
    x = model.x()
    chosen = session.select(0, x)
    assert session.stats().reads == 0
    np.testing.assert_allclose(session.ffn(0, x), model.output(0, x, chosen), **TOLERANCE)
    assert set(session.resident(0).tolist()) == set(chosen.tolist())
    session.prefetch(1, x)
    assert set(session.resident(1).tolist()) == set(session.select(1, x).tolist())


def test_pinned_neurons_are_computed_and_not_selected(make_model: Callable[..., Model]) -> None:
    model = make_model(selector="ternary", selector_size=32)
    session = open_session(model, 100, pinned_neurons=MOST)  # a table of 50 rows a layer
    pinned = set(session.resident(0).tolist())
    assert len(pinned) == 40
    for _ in range(4):
        x = model.x()
        before = session.stats()
        chosen = set(session.select(0, x).tolist())
        y = session.ffn(0, x)
        after = session.stats()
        computed = sorted(chosen | set(session.resident(0).tolist()))
        np.testing.assert_allclose(y, model.output(0, x, computed), **TOLERANCE)
        assert after.neurons_selected - before.neurons_selected == len(chosen - pinned) > 0


@pytest.mark.parametrize("kind", ["ternary", "low_rank"])
def test_a_neuron_that_has_to_be_read_must_score_higher(make_model: Callable[..., Model], kind: str) -> None:
    model = make_model(selector=kind, selector_size=32)
    scores_of, cut = (ternary_scores, 0.05) if kind == "ternary" else (low_rank_scores, 0.5)
    session = open_session(model, miss_weight=0.5, pinned_neurons=30, compute_resident=False, neighbours=False)
    order = tensors(model, 0)["order"]
    position = {int(neuron): at for at, neuron in enumerate(order)}
    left_out = 0
    for _ in range(4):
        x = model.x()
        before = set(session.resident(0).tolist())
        chosen = set(session.select(0, x).tolist())  # by the bare scores
        session.ffn(0, x)
        loaded = set(session.resident(0).tolist()) - before
        scores = scores_of(model, x)
        assert loaded <= chosen
        for neuron in chosen - before:
            # Sums in another order differ in the last bits.
            if abs(scores[position[neuron]] - 2 * cut) > 1e-4:
                assert (neuron in loaded) == (scores[position[neuron]] > 2 * cut)
                left_out += neuron not in loaded
    assert left_out > 0
    assert session.stats().cache_hits > 0


def test_beside_a_neuron_that_is_read_others_need_not_score_higher(make_model: Callable[..., Model]) -> None:
    model = make_model(selector="ternary", selector_size=32, d_ff=600)
    pinned = 30
    places = np.arange(600) // (16 * 1024 // open_pack(model.path).info.bundle_bytes)
    x = model.x()
    scores = ternary_scores(model, x)
    third, fourth = np.sort(scores[pinned:])[[-3, -4]]
    weight = 2 * 0.05 / (third + fourth)
    candidates = np.arange(600) >= pinned
    alone = candidates & (scores * weight > 0.05)
    together = candidates & (scores > 0.05) & np.isin(places, places[alone])
    assert 3 == alone.sum() < together.sum() < (candidates & (scores > 0.05)).sum()

    for neighbours, chosen in ((False, alone), (True, together)):
        session = open_session(model, 1200, miss_weight=weight, pinned_neurons=pinned, neighbours=neighbours)
        session.ffn(0, x)
        loaded = session.resident(0)[pinned:]
        assert sorted(loaded.tolist()) == sorted(tensors(model, 0)["order"][chosen].tolist())


def test_a_share_ranks_what_is_resident_before_what_has_to_be_read(make_model: Callable[..., Model]) -> None:
    model = make_model(selector="ternary", selector_size=32)
    session = open_session(model, miss_weight=1e-6, select_share=0.3, pinned_neurons=30, compute_resident=False)
    session.ffn(0, model.x())
    assert session.stats().cache_hits == 30
    assert session.stats().reads == 0


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5, float("nan")])
def test_a_weight_out_of_range_is_refused(model: Model, weight: float) -> None:
    with pytest.raises(FlashError, match="miss_weight must be above 0 and at most 1"):
        open_session(model, miss_weight=weight)


def test_the_hot_selector_computes_the_pinned_set_and_reads_nothing(model: Model) -> None:
    session = open_session(model, selector="hot", pinned_neurons=20)
    x = model.x()
    held = session.resident(0)
    np.testing.assert_allclose(session.ffn(0, x), model.output(0, x, held), **TOLERANCE)
    assert len(held) == 20
    assert session.stats().reads == 0


def test_selectors_count_against_the_budget(make_model: Callable[..., Model]) -> None:
    model = make_model(selector="ternary", selector_size=32)
    session = open_session(model, 0)
    assert open_pack(model.path).info.selector_bytes == sum(
        array.nbytes for layer in range(2) for name, array in tensors(model, layer).items() if "selector" in name
    )
    assert session.stats().held_bytes > open_pack(model.path).info.selector_bytes
