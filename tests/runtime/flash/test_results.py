"""Every dtype, shape of layer, mode, budget and instruction set gives what numpy gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from handheld.runtime.flash import UNLIMITED, FlashError, Session, SessionOptions, open_pack
from handheld.runtime.flash.layout import DTYPES

from .conftest import Model

# fp32 sums of d_ff products in another order; weights are compared after quantisation, so nothing else differs.
TOLERANCE = dict(rtol=1e-4, atol=1e-5)
PLENTY = 64 << 20
LAYERS: dict[str, dict[str, Any]] = {
    "swiglu": {"activation": "silu", "gated": True},
    "reglu": {"activation": "relu", "gated": True},
    "opt": {"activation": "relu", "gated": False, "up_bias": True, "down_bias": True},
}
KERNELS = ("portable", "avx2", "avx512", "neon")


def open_session(model: Model, rows: int | None = None, **options: Any) -> Session:
    """A session whose table holds `rows` neurons over all layers, or all of them.

    Without `int8_hidden`: its results depend, within a rounding, on which neurons are computed together.
    """
    pack = open_pack(model.path)
    options = {"reader_threads": 3, "int8_hidden": False, **options}
    if rows is None:
        return pack.session(SessionOptions(budget_bytes=PLENTY, **options))
    floor = pack.floor_bytes(SessionOptions(budget_bytes=0, **{**options, "pinned_neurons": 0}))
    row = pack.info.bundle_bytes + 24
    return pack.session(SessionOptions(budget_bytes=floor + rows * row, **options))


@pytest.mark.parametrize("rows", [0, 30, None])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_modes_equal_numpy_within_any_budget(
    make_model: Callable[..., Model], dtype: str, kind: str, rows: int | None
) -> None:
    model = make_model(dtype=dtype, threshold=0.01, **LAYERS[kind])
    session = open_session(model, rows)
    plain = open_session(model, rows, compute_resident=False)
    for _ in range(6):
        for layer in range(model.spec.layers):
            x, neurons = model.x(), model.neurons(25)
            over = model.layers[layer].over_threshold(x, model.spec.activation)
            np.testing.assert_allclose(session.ffn(layer, x, "dense"), model.output(layer, x), **TOLERANCE)
            np.testing.assert_allclose(session.ffn(layer, x, "exact"), model.output(layer, x, over), **TOLERANCE)
            np.testing.assert_allclose(
                plain.ffn(layer, x, "selected", neurons), model.output(layer, x, neurons), **TOLERANCE
            )


@pytest.mark.parametrize("dtype", ["int8", "int4", "int4m"])
def test_activations_are_rounded_unless_that_is_switched_off(make_model: Callable[..., Model], dtype: str) -> None:
    model = make_model(dtype=dtype, d_model=192, d_ff=300)
    as_it_is = tuple(replace(layer, group_size=0) for layer in model.layers)
    x = model.x()
    rounded, exact = model.output(0, x), as_it_is[0].output(x, "silu")
    # Half a step of 127 is 0.4 % of a group's largest value, and three products carry it.
    assert 1e-3 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 2e-2
    for mode in ("dense", "exact"):
        np.testing.assert_allclose(open_session(model).ffn(0, x, mode), rounded, **TOLERANCE)
        plain = open_session(model, int8_activations=False)
        np.testing.assert_allclose(plain.ffn(0, x, mode), exact, **TOLERANCE)


@pytest.mark.parametrize("mode", ["dense", "exact", "selected"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_down_parts_are_rounded_unless_that_is_switched_off(
    make_model: Callable[..., Model], dtype: str, mode: str
) -> None:
    model = make_model(dtype=dtype, d_model=192, d_ff=300, threshold=0.01)
    x, neurons = model.x(), model.neurons(70) if mode == "selected" else None
    rounded, plain = (
        open_session(model, pinned_neurons=UNLIMITED, int8_hidden=hidden).ffn(0, x, mode, neurons)
        for hidden in (True, False)
    )
    error = np.linalg.norm(rounded - plain) / np.linalg.norm(plain)
    if dtype in ("int4", "int4m"):
        # Half a step of 127 is 0.4 % of a group's largest value, and sums of many neurons average it.
        assert 1e-4 < error < 1.5e-2
    elif dtype == "int8":
        # Its steps are a sixteenth of that.
        assert 1e-6 < error < 1e-3
    else:
        np.testing.assert_array_equal(rounded, plain)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_equals_numpy(make_model: Callable[..., Model], dtype: str, kernels: str) -> None:
    model = make_model(dtype=dtype, d_model=256, d_ff=37, group_size=64)
    try:
        session = open_session(model, kernels=kernels)
    except FlashError as error:
        if error.status != "HH_FLASH_UNSUPPORTED":
            raise
        pytest.skip(f"this processor has no {kernels}")
    x = model.x()
    np.testing.assert_allclose(session.ffn(0, x, "dense"), model.output(0, x), **TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {"bundling": False},
        {"merging": False},
        {"window_tokens": 0},
        {"window_tokens": UNLIMITED},
        {"pinned_neurons": 7},
        {"pinned_neurons": UNLIMITED},
        {"chunk_bytes": 0},
        {"reader_threads": 1},
        {"io_uring": False},
        {"compute_threads": 1},
        {"compute_threads": 3},
    ],
    ids=str,
)
def test_no_technique_changes_the_result(model: Model, options: dict[str, Any]) -> None:
    session = open_session(model, 60, compute_resident=False, **options)
    for _ in range(5):
        x, neurons = model.x(), model.neurons(25)
        np.testing.assert_allclose(session.ffn(1, x, "selected", neurons), model.output(1, x, neurons), **TOLERANCE)


def test_results_repeat_to_the_bit(make_model: Callable[..., Model]) -> None:
    model = make_model(d_model=512, d_ff=700)
    outputs = []
    for io_uring in (True, True, False):
        session = open_session(model, 200, reader_threads=5, io_uring=io_uring, int8_hidden=True)
        rng = np.random.default_rng(1)
        run = []
        for _ in range(4):
            x, neurons = rng.standard_normal(512).astype(np.float32), rng.choice(700, 150, replace=False)
            run += [session.ffn(0, x, "selected", neurons), session.ffn(0, x, "dense"), session.ffn(0, x, "exact")]
        outputs.append(np.stack(run))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_exact_mode_does_not_depend_on_what_is_resident(make_model: Callable[..., Model]) -> None:
    model = make_model(threshold=0.02)
    whole, none = open_session(model, pinned_neurons=UNLIMITED), open_session(model, 0)
    for _ in range(3):
        x = model.x()
        np.testing.assert_allclose(whole.ffn(0, x, "exact"), none.ffn(0, x, "exact"), **TOLERANCE)
    assert whole.stats().reads == 0


def test_selected_mode_computes_every_resident_neuron(model: Model) -> None:
    session = open_session(model, window_tokens=3, pinned_neurons=5)
    for _ in range(6):
        x, neurons = model.x(), model.neurons(20)
        y = session.ffn(0, x, "selected", neurons)
        # What expired at this token was evicted before computing, so the table is what was computed.
        np.testing.assert_allclose(y, model.output(0, x, session.resident(0)), **TOLERANCE)
        assert set(neurons) <= set(session.resident(0))


def test_nan_in_the_input_shows_in_the_output(model: Model) -> None:
    x = model.x()
    x[3] = np.nan
    for mode in ("dense", "exact"):
        assert np.isnan(open_session(model).ffn(0, x, mode)).all()
