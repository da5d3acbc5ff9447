"""Small packs and what a layer of them computes, in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handheld.runtime.errors import RuntimeMissing
from handheld.runtime.flash import FeedForward, LayerSelector, PackSpec, PackWriter
from handheld.runtime.flash.engine import load_native
from handheld.runtime.flash.quantise import decode_rows, encode_rows


def round_activations(x: np.ndarray, group_size: int) -> np.ndarray:
    """x (d_model,) fp32 as integer rows with groups of this size are multiplied with it: in 8 bits and a scale per
    group; as it is for 0."""
    if group_size == 0:
        return x
    groups = x.reshape(-1, group_size)
    largest = np.abs(groups).max(axis=1, keepdims=True)
    codes = np.rint(groups * (np.float32(127) / largest))
    return (codes * (largest / np.float32(127))).reshape(x.shape)


@dataclass(frozen=True)
class Layer:
    """A layer as it was given to the writer, and the weights that are left of it after quantisation."""

    given: FeedForward
    gate: np.ndarray | None  # (d_ff, d_model), as up and down
    up: np.ndarray
    down: np.ndarray
    importance: np.ndarray
    threshold: float
    group_size: int  # of the activations that are rounded; 0: none are

    def activations(self, x: np.ndarray, activation: str) -> np.ndarray:
        """h of every neuron, (d_ff,)."""
        x = round_activations(x, self.group_size)
        up = self.up @ x + (0 if self.given.up_bias is None else self.given.up_bias)
        first = up if self.gate is None else self.gate @ x
        active = np.maximum(first, 0) if activation == "relu" else first / (1 + np.exp(-first))
        return active if self.gate is None else active * up

    def output(self, x: np.ndarray, activation: str, neurons: np.ndarray | None = None) -> np.ndarray:
        """The layer's output from those neurons, by default all."""
        h = self.activations(x, activation)
        chosen = slice(None) if neurons is None else np.asarray(neurons, dtype=np.int64)
        bias = 0 if self.given.down_bias is None else self.given.down_bias
        return h[chosen] @ self.down[chosen] + bias

    def over_threshold(self, x: np.ndarray, activation: str) -> np.ndarray:
        return np.flatnonzero(np.abs(self.activations(x, activation)) * self.importance > self.threshold)


@dataclass(frozen=True)
class Model:
    path: Path
    spec: PackSpec
    layers: tuple[Layer, ...]
    rng: np.random.Generator

    def x(self) -> np.ndarray:
        return self.rng.standard_normal(self.spec.d_model).astype(np.float32)

    def output(self, layer: int, x: np.ndarray, neurons: np.ndarray | None = None) -> np.ndarray:
        return self.layers[layer].output(x, self.spec.activation, neurons)

    def neurons(self, count: int) -> np.ndarray:
        return self.rng.choice(self.spec.d_ff, size=count, replace=False)


def make_layer(spec: PackSpec, rng: np.random.Generator, threshold: float = 0.0) -> Layer:
    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(spec.d_model)).astype(np.float32)

    given = FeedForward(
        gate=weights(spec.d_ff, spec.d_model) if spec.gated else None,
        up=weights(spec.d_ff, spec.d_model),
        down=weights(spec.d_model, spec.d_ff),
        up_bias=weights(spec.d_ff) if spec.up_bias else None,
        down_bias=weights(spec.d_model) if spec.down_bias else None,
    )

    def stored(rows: np.ndarray) -> np.ndarray:
        encoded = encode_rows(rows, spec.dtype, spec.group_size)
        return decode_rows(encoded, spec.dtype, spec.d_model, spec.group_size)

    return Layer(
        given=given,
        gate=None if given.gate is None else stored(given.gate),
        up=stored(given.up),
        down=stored(given.down.T),
        importance=np.abs(weights(spec.d_ff)) + 0.1,
        threshold=threshold,
        group_size=spec.stored_group_size,
    )


def make_selector(spec: PackSpec, rng: np.random.Generator) -> LayerSelector | None:
    if spec.selector == "none":
        return None
    if spec.selector == "ternary":
        noise = rng.random((spec.d_ff, 2 if spec.gated else 1)) / 100
        return LayerSelector(threshold=0.05, noise=noise)
    return LayerSelector(
        threshold=0.5,
        a=rng.standard_normal((spec.selector_size, spec.d_model)) / np.sqrt(spec.d_model),
        b=rng.standard_normal((spec.d_ff, spec.selector_size)) / np.sqrt(spec.selector_size),
        bias=rng.standard_normal(spec.d_ff) / 4,
    )


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """`make_model(seed=0, threshold=0.0, shuffled=True, **fields of PackSpec)` writes a pack of random weights."""

    def make(seed: int = 0, threshold: float = 0.0, shuffled: bool = True, **fields: Any) -> Model:
        spec = PackSpec(**{"layers": 2, "d_model": 64, "d_ff": 100, **fields})
        rng = np.random.default_rng(seed)
        path = tmp_path_factory.mktemp("packs") / "model.flash"
        layers = tuple(make_layer(spec, rng, threshold) for _ in range(spec.layers))
        with PackWriter(path, spec) as writer:
            for layer in layers:
                writer.add_layer(
                    layer.given,
                    order=rng.permutation(spec.d_ff) if shuffled else None,
                    importance=layer.importance,
                    threshold=layer.threshold,
                    selector=make_selector(spec, rng),
                )
            writer.add_resident("embeddings", np.ones((3, 4), np.float16))
        return Model(path, spec, layers, rng)

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Model]) -> Model:
    """Two gated int8 layers of 100 neurons."""
    return make_model()


@pytest.fixture(autouse=True, scope="session")
def _engine() -> None:
    try:
        load_native()
    except RuntimeMissing as error:
        pytest.skip(str(error))
