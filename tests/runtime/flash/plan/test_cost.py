"""The cost model against the table of OPT-6.7B in arXiv 2312.11514, from inputs that the paper publishes."""

from __future__ import annotations

from pathlib import Path

import pytest

from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.flash.plan import (
    DEVICES,
    Device,
    StorageCurve,
    StoragePoint,
    Traffic,
    calibrate,
    read_device,
    token_cost,
)

# The architecture of OPT-6.7B: its configuration, with tied embeddings, in 16 bits.
LAYERS, D_MODEL, D_FF, VOCAB, POSITIONS, WEIGHT_BYTES = 32, 4096, 16384, 50272, 2050, 2
FFN_BYTES = LAYERS * 2 * D_MODEL * D_FF * WEIGHT_BYTES
MODEL_BYTES = FFN_BYTES + (LAYERS * 4 * D_MODEL**2 + (VOCAB + POSITIONS) * D_MODEL) * WEIGHT_BYTES
# From the text of section 4: neurons that the predictor takes for active, and those new to a window of five tokens.
PREDICTED, NEW_IN_WINDOW = 0.10, 0.024
ROW_BYTES = D_MODEL * WEIGHT_BYTES


def reads(total_bytes: float, chunk_bytes: int) -> Traffic:
    return Traffic([chunk_bytes] * round(total_bytes / chunk_bytes))


def test_share_of_feed_forward_weights_is_as_published() -> None:
    assert pytest.approx(0.6462, abs=0.002) == FFN_BYTES / MODEL_BYTES


@pytest.mark.parametrize(
    ("name", "traffic", "published_ms"),
    [
        ("naive", reads(MODEL_BYTES, 32 << 20), 2196),
        ("half resident", reads(MODEL_BYTES / 2, 32 << 20), 1090),
        ("predictor", reads(PREDICTED * FFN_BYTES, ROW_BYTES), 738),
        ("window", reads(NEW_IN_WINDOW * FFN_BYTES, ROW_BYTES), 164),
        ("bundling", reads(NEW_IN_WINDOW * FFN_BYTES, 2 * ROW_BYTES), 87),
    ],
)
def test_io_of_opt_6_7b_is_within_a_fifth_of_the_published_one(
    name: str, traffic: Traffic, published_ms: float
) -> None:
    cost = token_cost(read_device("m1-max"), traffic, threads=32)
    assert cost.io_s * 1000 == pytest.approx(published_ms, rel=0.2)
    assert cost.memory_s is None
    assert cost.compute_s is None


def test_every_device_of_the_table_is_read() -> None:
    assert all(read_device(name).storage.bytes_per_s(16384, 8) > 0 for name in DEVICES)


def curve(*points: tuple[int, int, float]) -> StorageCurve:
    return StorageCurve(tuple(StoragePoint(*point, "a test") for point in points))


def test_throughput_between_points_is_linear_in_logarithms_and_constant_outside() -> None:
    grid = curve((4096, 1, 1e8), (16384, 1, 4e8), (4096, 16, 4e8), (16384, 16, 16e8))
    assert grid.bytes_per_s(8192, 1) == pytest.approx(2e8)
    assert grid.bytes_per_s(4096, 4) == pytest.approx(2e8)
    assert grid.bytes_per_s(8192, 4) == pytest.approx(4e8)
    assert grid.bytes_per_s(512, 1) == 1e8
    assert grid.bytes_per_s(1 << 30, 64) == 16e8


def test_few_reads_are_in_flight_as_many_as_there_are() -> None:
    device = Device("a test", curve((4096, 1, 1e8), (4096, 16, 16e8)))
    assert token_cost(device, Traffic([4096]), 16).io_s == pytest.approx(4096 / 1e8)
    assert token_cost(device, Traffic([4096] * 16), 16).io_s == pytest.approx(16 * 4096 / 16e8)


def test_cost_has_the_parts_that_the_device_has_figures_for() -> None:
    device = Device("a test", curve((4096, 1, 1e8)), copy_bytes_per_s=1e9, compute_bytes_per_s=2e9)
    cost = token_cost(device, Traffic([], moved_bytes=1000, computed_bytes=4000))
    assert (cost.io_s, cost.memory_s, cost.compute_s) == (0, 1e-6, 2e-6)
    unknown = cost + token_cost(Device("a test", device.storage, copy_bytes_per_s=1e9), Traffic([], 1000, 1))
    assert unknown.memory_s == pytest.approx(2e-6)
    assert unknown.compute_s is None


def test_calibrated_device_is_read_back_as_it_was(tmp_path: Path) -> None:
    # Beside the repository, as the system's temporary folder may be in memory, which has no direct reads.
    folder = Path(__file__).parent
    try:
        device = calibrate(folder, chunks=(4096, 65536), threads=(1, 4), file_bytes=4 << 20, seconds_per_point=0.02)
    except RuntimeFailure as error:
        pytest.skip(str(error))
    assert [(p.chunk_bytes, p.threads) for p in device.storage.points] == [
        (4096, 1), (65536, 1), (4096, 4), (65536, 4)
    ]  # fmt: skip
    assert not list(folder.glob(".handheld-calibrate-*"))
    device.write(tmp_path / "here.json")
    assert read_device(tmp_path / "here.json") == device


def test_device_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"phone-9 is no device: give one of m1-max"):
        read_device("phone-9")
    for text in ("{", "[]", '{"format": "handheld.flash.device", "format_version": 2}'):
        (tmp_path / "device.json").write_text(text)
        with pytest.raises(RuntimeFailure, match="is not a device file"):
            read_device(tmp_path / "device.json")
    with pytest.raises(RuntimeFailure, match="over zero"):
        curve((4096, 1, 0.0))
