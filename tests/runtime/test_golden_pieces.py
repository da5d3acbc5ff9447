"""Golden clips are compared, read and written piece by piece, whatever their length."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from handheld.runtime.bundle import BundleWriter, read_bundle
from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.manifest import Method, TensorSpec
from handheld.runtime.parity import BLOCK, compare, compare_stream

SPEC = TensorSpec("frames", (1, 3, 5, 8, 8), layout="NCTHW")


def clip(frames: int, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 3, frames, side, side), np.float32)


def test_pieces_give_the_figures_of_the_whole() -> None:
    golden, found = clip(5), clip(5) + np.float32(0.01) * clip(5, seed=1)
    exact = np.abs(found - golden.astype(np.float64))
    for parity in (
        compare(SPEC, None, found, golden),
        compare_stream(SPEC, None, iter([found[:, :, :2], found[:, :, 2:]]), golden),
    ):
        assert parity.max_abs_error == exact.max()
        assert parity.mean_squared_error == pytest.approx(np.mean(exact**2), rel=1e-12)
        assert parity.peak == float(golden.max()) - float(golden.min())


def test_values_beyond_the_first_block_count() -> None:
    golden = np.zeros((1, 3, 1, 1, BLOCK), np.float32)
    found = golden.copy()
    found[..., -1] = 0.5
    assert compare(SPEC, None, found, golden).max_abs_error == 0.5
    found[0, 2, 0, 0, -1] = np.nan
    assert not compare(SPEC, None, found, golden).finite


@pytest.mark.parametrize("given", [4, 6])
def test_another_number_of_frames_is_an_error(given: int) -> None:
    frames = (clip(1) for _ in range(given))
    with pytest.raises(RuntimeFailure, match=f"gave {given} frames, and the golden clip has 5"):
        compare_stream(SPEC, None, frames, clip(5))


def test_a_long_clip_is_never_held(tmp_path: Path, fill: Callable[..., None]) -> None:
    """Writing, checking, reading and comparing 100 MB of golden frames allocate a fraction of them."""
    shape = (1, 3, 33, 512, 512)
    inputs = TensorSpec("latents", (1, 8, 5, 4, 4), layout="NCTHW")
    outputs = TensorSpec("frames", shape, layout="NCTHW", range=(-1.0, 1.0))
    frames = np.memmap(tmp_path / "frames", np.float32, "w+", shape=shape)
    frames[:, :, -1] = 1.0
    latents = np.zeros(inputs.shape, np.float32)

    def decoded() -> Iterator[np.ndarray]:
        for index in range(shape[2]):
            yield np.full((1, 3, 1, *shape[3:]), index == shape[2] - 1, np.float32)

    tracemalloc.start()
    with BundleWriter(tmp_path / "bundle") as writer:
        fill(writer, {"onnx": b"model"}, latents, frames, methods=[Method("main", (inputs.shape,), (shape,))])
        writer.describe(name="long", provenance={}, versions={}, inputs=[inputs], outputs=[outputs])
    _, golden = read_bundle(tmp_path / "bundle").golden()
    parity = compare_stream(outputs, None, decoded(), golden["frames"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert parity.max_abs_error == 0.0
    assert peak < frames.nbytes / 2
