"""The page: well-formed, self-contained, and complete."""

from __future__ import annotations

import base64
import dataclasses
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from handheld.runtime.bundle import Artifact, Method, Tolerance
from handheld.runtime.charts import Row, bar_chart, strip_plot
from handheld.runtime.errors import RuntimeFailure
from handheld.runtime.host import describe_host
from handheld.runtime.profile_record import (
    BundleInfo,
    ComputeUnits,
    Conditions,
    Measurement,
    Profile,
    Round,
    Settings,
)
from handheld.runtime.report import write_report
from handheld.runtime.verify import Verdict

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def measurement(label: str, role: str, samples_ms: list[int], **changes: object) -> Measurement:
    made = Measurement(
        label=label,
        role=role,
        bundle=0,
        artifact="onnx",
        target="onnx",
        runtime="onnxruntime",
        runtime_version="1.2.3",
        precision="fp32",
        sha256="ab" * 32,
        size_bytes=12_300_000,
        method="main",
        input_shapes=((1, 16, 5, 8, 8),),
        output_shapes=((1, 3, 9, 64, 64),),
        unit="frame",
        units_per_run=9,
        prompt_tokens=None,
        threads=2,
        compute_units=ComputeUnits(),
        tolerance=None,
        rounds=(
            Round(
                load_ns=50_000_000,
                first_run_ns=90_000_000,
                latency_ns=tuple(ms * 1_000_000 for ms in samples_ms),
                first_frame_ns=tuple(ms * 400_000 for ms in samples_ms) if role == "student" else (),
                baseline_bytes=60_000_000,
                peak_bytes=110_000_000,
                flash=None,
                before=Conditions(thermal="nominal"),
                after=Conditions(thermal="fair", load_average_1min=1.25),
            ),
        ),
        parity=None,
        error=None,
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def profile() -> Profile:
    student, teacher = [30, 31, 29, 30, 45], [300, 310, 290, 300, 330]
    return Profile(
        created_utc="2026-11-23T18:00:00Z",
        command="handheld profile BUNDLE --teacher 'a b'",
        software={"handheld": "0.1.0"},
        settings=Settings(repeat=5, warmup=1, rounds=1, threads=2, interleaved=True),
        device=describe_host(),
        bundles=(BundleInfo("tiny", "2026-11-23T17:00:00Z", {"run": {"seed": 7}}, {"torch": "2.13.0"}),),
        subjects=(measurement("student <onnx>", "student", student), measurement("teacher", "teacher", teacher)),
    )


def written(profile: Profile, folder: Path, **arguments: object) -> tuple[str, ET.Element]:
    """The page as text, and parsed: it is well-formed XML if this returns."""
    write_report(profile, folder / "report.html", **{"title": "Tiny & <b>small</b>"} | arguments)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    return page, ET.fromstring(page.removeprefix("<!DOCTYPE html>"))


def cells(root: ET.Element, row_label: str) -> list[list[str]]:
    rows = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    return [row for row in rows if row[0] == row_label]


def test_the_page_is_well_formed_and_loads_nothing(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "frame.png").write_bytes(PNG)
    page, root = written(profile, tmp_path, images=[("original | teacher | student", tmp_path / "frame.png")])
    assert root.find("head/title").text == "Tiny & <b>small</b>"
    links = [value for node in root.iter() for name, value in node.attrib.items() if name in ("src", "href")]
    assert links == ["data:image/png;base64," + base64.b64encode(PNG).decode()]
    assert not re.search(r"url\(|@import|<script|https?://", page)
    assert "original | teacher | student" in [caption.text for caption in root.iter("figcaption")]


def test_the_page_says_what_the_figures_hold_for_and_how_they_were_made(profile: Profile, tmp_path: Path) -> None:
    _, root = written(profile, tmp_path)
    text = "".join(root.itertext())
    assert "Measured on this host; says nothing about a phone." in text
    assert "handheld profile BUNDLE --teacher 'a b'" in text
    assert cells(root, "run.seed") == [["run.seed", "7"]]
    assert cells(root, "torch") == [["torch", "2.13.0"]]
    (thermal,) = cells(root, "thermal state before and after")
    assert thermal[1] == "nominal, fair"


def test_the_tables_hold_the_figures_of_the_profile(profile: Profile, tmp_path: Path) -> None:
    _, root = written(profile, tmp_path)
    (speed,) = cells(root, "student <onnx> student")
    (footprint,) = cells(root, "student <onnx>")
    assert speed[1:] == ["onnxruntime 1.2.3 · fp32 · 2 threads", "50", "90", "12", "30", "45", "45", "300", "10.00"]
    assert footprint[1:] == ["12.3", "50.0", "110.0", "60.0"]
    dots = [node for node in root.iter("circle") if "student" in node.get("class")]
    assert len(dots) == 5


def test_verdicts_and_quality_are_shown(profile: Profile, tmp_path: Path) -> None:
    tolerance = Tolerance(1e-4, "fp32 against fp32")
    methods = (Method("main", ((1,),), ((1,),)),)
    artifact = Artifact("onnx", "onnx", "onnxruntime", "onnx/x", "fp32", "ab" * 32, 1, tolerance, methods)
    verdicts = [
        Verdict(artifact, "pass", "", 2e-6, float("inf"), tolerance, "1.2.3"),
        Verdict(
            dataclasses.replace(artifact, name="ios"), "not verified", "needs a Mac", None, None, tolerance, None
        ),
    ]
    quality = {"student": {"PSNR, dB": 24.125, "SSIM": None}, "teacher": {"PSNR, dB": 30.0}}
    _, root = written(profile, tmp_path, verdicts=verdicts, quality=quality)
    assert cells(root, "onnx")[0][1:] == [
        "pass",
        "onnxruntime 1.2.3",
        "2.00e-06",
        "1e-04",
        "equal",
        "fp32 against fp32",
    ]
    assert cells(root, "ios")[0][1:] == ["not verified", "onnxruntime", "–", "1e-04", "–", "needs a Mac"]
    assert cells(root, "student")[-1] == ["student", "24.12", "–"]


def test_a_subject_that_failed_is_shown_with_its_error_and_no_figures(profile: Profile, tmp_path: Path) -> None:
    failed = measurement(
        "broken",
        "student",
        [1],
        rounds=(),
        threads=None,
        runtime_version=None,
        error="died of SIGSEGV\x1b[31m <during> run",
    )
    _, root = written(dataclasses.replace(profile, subjects=(failed,)), tmp_path)
    assert "died of SIGSEGV�[31m <during> run" in "".join(root.itertext())
    assert set(cells(root, "broken student")[0][2:]) == {"–"}
    assert "tile" not in [node.get("class") for node in root.iter("div")]


def test_a_picture_that_cannot_be_shown_is_refused(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    for name, says in (("text.png", "not a PNG file"), ("absent.png", "cannot be read")):
        with pytest.raises(RuntimeFailure, match=says):
            write_report(profile, tmp_path / "r.html", title="x", images=[("", tmp_path / name)])
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("values", [(0.0,), (1e-7,), (123456.7,), (1.0, 1.0, 1.0)])
def test_charts_keep_every_mark_inside_the_picture(values: tuple[float, ...]) -> None:
    rows = [Row("a label that is much longer than the space for it <&>", "student", values)]
    draw: list[Callable] = [strip_plot] + ([bar_chart] if len(values) == 1 else [])
    for chart in draw:
        root = ET.fromstring(chart(rows, "ms"))
        _, _, width, height = map(float, root.get("viewBox").split())
        for node in root.iter():
            x = float(node.get("x") or node.get("cx") or 0) + float(node.get("width") or 0)
            y = float(node.get("y") or node.get("cy") or 0) + float(node.get("height") or 0)
            assert 0 <= x <= width
            assert 0 <= y <= height
