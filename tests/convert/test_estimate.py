"""Estimates: the work read off a graph, rates that fit and their true error, verdicts on memory."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from handheld.convert import TARGETS, ExportError
from handheld.convert.estimate import DEVICES, Work, estimate_work, published, read_device, recalibrated, work_of
from handheld.convert.estimate.latency import (
    DeviceRates,
    PublishedRow,
    fit_rates,
    left_out_errors,
    published_rows,
    transferred,
)
from handheld.convert.estimate.work import work_of_graph
from handheld.convert.graph.capture import capture
from handheld.models import TurboVAEDecoder

PHONE = read_device("iphone-16-pro")


def work(multiply_adds: int, read: int, written: int, weights: int = 0, peak: int = 0) -> Work:
    return Work(9, multiply_adds, multiply_adds, ((read, written, 1),), peak, weights)


def test_work_counts_padding_and_traffic_by_hand() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Conv3d(40, 8, 3, padding=1)
            self.depthwise = nn.Conv3d(8, 8, 3, padding=1, groups=8)

        def forward(self, x: Tensor) -> Tensor:
            return self.depthwise(self.dense(x)).reshape(1, 4, 4, 4, 4)

    with torch.device("meta"):
        graph = capture(Two(), (torch.empty(1, 40, 2, 4, 4),))
    found = work_of_graph(graph, torch.float16, channel_block=32)
    places = 2 * 4 * 4 * 27
    assert found.frames == 4
    assert found.multiply_adds == places * (40 * 8 + 8)
    assert found.padded_multiply_adds == places * (64 * 32 + 8)
    into, out = 40 * 32 * 2, 8 * 32 * 2
    assert found.op_bytes == ((out, out, 1), (into, out, 1))  # the reshape moves nothing
    assert found.moved_bytes() == into + 3 * out
    assert found.moved_bytes(cache_bytes=out) == into + out
    assert found.weight_bytes == 2 * (40 * 8 * 27 + 8 + 8 * 27 + 8)


def test_work_is_the_same_on_the_meta_device() -> None:
    torch.manual_seed(0)
    model = TurboVAEDecoder.from_preset("tiny").eval()
    latents = torch.randn(model.spec.latent_shape(frames=3, height=32, width=32))
    real = work_of(model, latents, TARGETS["ios"])
    assert work_of(model.to("meta"), latents.to("meta"), TARGETS["ios"]) == real
    assert real.frames == 3
    assert work_of(model, latents.to("meta"), TARGETS["ios"], "fp32").peak_bytes == 2 * real.peak_bytes


def test_published_rates_are_as_good_as_stated() -> None:
    calibration = published()
    assert len(calibration.errors) == 7
    assert calibration.median_error == statistics.median(map(abs, calibration.errors)) < 0.25
    assert max(map(abs, calibration.errors)) < 0.6
    assert 1.4 < calibration.band < 1.8


def test_rows_out_of_memory_are_predicted_as_such_and_no_other() -> None:
    rows = published_rows()
    assert sum(row.seconds is None for row in rows) == 3
    for row in rows:
        assert (estimate_work(row.work, PHONE).fits != "yes") == (row.seconds is None), row.model


def test_the_band_holds_four_in_five_of_the_published_rows() -> None:
    timed = [row for row in published_rows() if row.seconds]
    inside = [found.low <= row.seconds <= found.high for row in timed for found in [estimate_work(row.work, PHONE)]]
    assert sum(inside) / len(inside) >= 0.8


def test_an_error_is_of_a_fit_that_never_saw_its_row() -> None:
    """A row's own time does not move what is predicted for it, nor does that of the same work."""
    rows = [row for row in published_rows() if row.seconds]
    predicted = [(1 + error) * row.seconds for error, row in zip(left_out_errors(rows, PHONE), rows)]
    for place, row in enumerate(rows):
        moved = [dataclasses.replace(r, seconds=r.seconds * 3) if r.work == row.work else r for r in rows]
        again = left_out_errors(moved, PHONE)[place]
        assert (1 + again) * row.seconds * 3 == pytest.approx(predicted[place])


def test_a_fit_finds_the_rates_that_made_the_times() -> None:
    rates = DeviceRates(4e12, 100e9)
    works = [work(n * 10**11, m * 10**9, m * 10**9) for n, m in ((1, 5), (3, 4), (7, 1), (9, 9))]
    rows = [PublishedRow("", one, sum(rates.seconds(one, None))) for one in works]
    found = fit_rates([*rows, rows[0]], PHONE)
    assert found.multiply_adds == pytest.approx(4e12)
    assert found.bytes == pytest.approx(100e9)


def test_a_fit_never_computes_faster_than_the_devices_peak() -> None:
    rates = DeviceRates(50e12, 100e9)
    rows = [
        PublishedRow("", one, sum(rates.seconds(one, None)))
        for one in (work(10**12, 9 * 10**9, 10**9), work(10**12, 2 * 10**10, 10**9), work(10**11, 10**10, 10**10))
    ]
    assert fit_rates(rows, PHONE).multiply_adds == pytest.approx(PHONE.multiply_adds_per_second.value)


def test_times_of_another_device_scale_with_its_peaks() -> None:
    half = dataclasses.replace(
        PHONE, name="half", bytes_per_second=dataclasses.replace(PHONE.bytes_per_second, value=30e9)
    )
    asked = work(10**11, 10**10, 10**10)
    computing, moving = published().rates.seconds(asked, 0)
    assert transferred(published(), half).rates.seconds(asked, 0) == pytest.approx((computing, 2 * moving))
    found = estimate_work(work(10**9, 10**10, 10**10), PHONE)
    assert found.bound == "memory traffic"
    assert estimate_work(work(10**13, 10**8, 10**8), PHONE).bound == "multiply-adds"
    assert found.low < found.seconds < found.high
    assert found.frames_per_second == pytest.approx(9 / found.seconds)


def test_unknown_stays_unknown_until_calibrated() -> None:
    pixel = read_device("pixel-9")
    asked = work(10**11, 10**9, 10**9)
    found = estimate_work(asked, pixel)
    assert (found.seconds, found.low, found.bound, found.fits, found.load_seconds) == (None,) * 5
    mine = recalibrated(pixel, [(asked, 2.0)], "mine.json")
    assert estimate_work(asked, pixel, mine).seconds == pytest.approx(2.0)
    assert mine.errors == published().errors  # one model says nothing of the band


def test_own_profiles_scale_all_times_by_one_factor() -> None:
    works = [work(n * 10**11, 10**10, 10**9) for n in (1, 2, 5)]
    seconds = [sum(published().rates.seconds(one, int(PHONE.cache_bytes.value))) for one in works]
    mine = recalibrated(PHONE, [(one, 2 * s) for one, s in zip(works, seconds)], "mine.json")
    assert mine.scale == pytest.approx(2)
    assert mine.errors == pytest.approx((0, 0, 0), abs=1e-9)
    other = work(3 * 10**11, 10**10, 10**9)
    assert estimate_work(other, PHONE, mine).seconds == pytest.approx(2 * estimate_work(other, PHONE).seconds)
    off = recalibrated(PHONE, [(one, s * f) for one, s, f in zip(works, seconds, (1, 1, 4))], "mine.json")
    assert off.errors == pytest.approx((1, 1, -0.75))  # the others' factor is 2, 2 and 1
    with pytest.raises(ExportError, match="nothing to calibrate on"):
        recalibrated(PHONE, [], "mine.json")


@pytest.mark.parametrize(
    ("memory", "fits"), [(10**9, "yes"), (3 * 10**9 + 1, "with the entitlement"), (7 * 10**9, "no")]
)
def test_memory_is_weights_and_peak_against_the_limit(memory: int, fits: str) -> None:
    found = estimate_work(work(10**9, 10**6, 10**6, weights=4 * 10**8, peak=memory - 4 * 10**8), PHONE)
    assert (found.memory_bytes, found.fits) == (memory, fits)


def test_every_table_states_its_sources_and_a_target(tmp_path: Path) -> None:
    for name in DEVICES:
        device = read_device(name)
        assert device.name == name
        assert device.target in TARGETS
    own = json.loads((Path(__file__).parents[2] / "convert/estimate/devices/pixel-9.json").read_text())
    own["storage"] = {
        "source": "measured",
        "points": [
            {"block_bytes": 4096, "random": True, "bytes_per_second": 1e8},
            {"block_bytes": 1048576, "random": False, "bytes_per_second": 2e9},
        ],
    }
    (tmp_path / "own.json").write_text(json.dumps(own))
    device = read_device(str(tmp_path / "own.json"))
    assert estimate_work(work(1, 1, 1, weights=10**9), device).load_seconds == pytest.approx(0.5)


def test_a_device_table_with_faults_is_refused_with_all_of_them(tmp_path: Path) -> None:
    own = json.loads((Path(__file__).parents[2] / "convert/estimate/devices/pixel-9.json").read_text())
    own["ram_bytes"] = {"value": 0}
    own["colour"] = "red"
    (tmp_path / "own.json").write_text(json.dumps(own))
    with pytest.raises(ExportError) as caught:
        read_device(str(tmp_path / "own.json"))
    for fault in ("ram_bytes.value", "ram_bytes.source: missing", "colour: unknown key"):
        assert fault in str(caught.value)
    (tmp_path / "old.json").write_text('{"format_version": 0}')
    with pytest.raises(ExportError, match="format_version 0"):
        read_device(str(tmp_path / "old.json"))
    with pytest.raises(ExportError, match=r"No device 'iphone-3g'. There are iphone-15-pro"):
        read_device("iphone-3g")
    with pytest.raises(ExportError, match="no readable device table"):
        read_device(str(tmp_path / "absent.json"))


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "size"), [("ltx", (512, 512)), ("dc", (512, 512)), ("hunyuan", (512, 512))])
def test_published_work_is_that_of_the_graphs_as_they_are_now(preset: str, size: tuple[int, int]) -> None:
    """After a change of the ios rewrites: run benchmarks/published_work.py and renew docs/estimate.md."""
    with torch.device("meta"):
        model = TurboVAEDecoder.from_preset(preset).eval()
    frames = 17 if model.spec.first_frame_alone else 16
    shape = model.spec.latent_shape(frames=frames, height=size[0], width=size[1])
    (row,) = (r for r in published_rows() if r.model == f"student {preset}, {size[1]}x{size[0]}")
    assert work_of(model, torch.empty(shape, device="meta"), TARGETS["ios"]) == row.work
