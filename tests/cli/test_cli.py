"""The command line as users meet it: the whole way on a real clip, help, and one clear message per mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from handheld.convert import TARGETS
from handheld.latents_file import write_latents

COMMANDS = (
    "distill",
    "check",
    "fit",
    "estimate",
    "export",
    "verify",
    "profile",
    "compare",
    "encode",
    "decode",
    "demo",
    "tune",
    "doctor",
)

RECIPE = """
teacher: {name: embedded}
student: {preset: tiny}
data: {held_out: 0.25, held_out_clips: 1, frames: 3, crop: 32}
loss: {l1: 1.0}
optim: {steps: 2, lr: 1.0e-3}
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 24 frames of 64x48: a bright square that moves over a gradient."""
    import av

    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(24):
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[..., 0] = np.linspace(0, 200, 64, dtype=np.uint8)
            picture[10:26, index : index + 16] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX bundle of the tiny preset with random weights, for 3 frames of 32x32."""
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    size = ["--height", "32", "--width", "32", "--frames", "3"]
    command = [sys.executable, "-m", "handheld.cli", "export", "tiny", "-t", "onnx", *size, "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def test_the_whole_way_from_a_video_to_a_decoded_video(handheld: Run, video: Path, tmp_path: Path) -> None:
    import av

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run, made = tmp_path / "run", tmp_path / "bundle"
    status, text, _ = handheld("distill", tmp_path / "recipe.yaml", "--videos", video, "-o", run)
    assert status == 0
    assert "teacher" in text
    assert "student" in text
    assert f"handheld export {run}" in text

    status, text, _ = handheld("export", run, "-t", "onnx", "-o", made)
    assert status == 0
    assert "onnx/decoder" in text
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["provenance"]["teacher"]["name"] == "embedded"
    assert manifest["provenance"]["golden_latents"] == "a held-out clip of the run"

    status, text, _ = handheld("verify", made)
    assert status == 0
    assert "pass" in text

    status, text, _ = handheld("profile", made, "-o", tmp_path / "report", "--repeat", 2, "--rounds", 1)
    assert status == 0
    assert "says nothing about a phone" in text
    profile = json.loads((tmp_path / "report" / "profile.json").read_text())
    assert [s["role"] for s in profile["subjects"]] == ["teacher", "student"]
    assert all(len(s["rounds"][0]["latency_ns"]) == 2 for s in profile["subjects"])
    page = (tmp_path / "report" / "index.html").read_text()
    assert "data:image/png;base64" in page

    status, text, _ = handheld("encode", video, "--for", made, "-o", tmp_path / "latents.safetensors")
    assert status == 0
    assert "8 clips of 3 frames" in text
    status, text, _ = handheld("decode", made, tmp_path / "latents.safetensors", "-o", tmp_path / "out.mp4")
    assert status == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 24
    assert (frames[0].height, frames[0].width) == (32, 32)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_or_an_exit_status(handheld: Run, command: str) -> None:
    status, text, _ = handheld(command, "--help")
    assert status == 0
    assert "Usage: handheld" in text
    assert "Example" in text or "status 1" in text


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, handheld.cli\n"
        "sys.argv = ['handheld', '--help']\n"
        "try: handheld.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'onnxruntime', 'executorch', 'coremltools', 'matplotlib', 'av'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in shown
    assert all(f" {command} " in shown for command in COMMANDS)


def test_doctor_names_every_target_and_what_cannot_run_here(handheld: Run) -> None:
    status, text, _ = handheld("doctor")
    assert status == 0
    assert all(f" {name} " in text for name in TARGETS)
    assert all(name in text for name in ("embedded", "cogvideox", "transformers", "flash engine"))
    assert "android-vulkan: cannot be run here: ExecuTorch's Python package is built without" in text
    if sys.platform != "darwin":
        assert "ios, ios16, ios18: cannot be run here: Core ML runs on macOS only" in text
        assert text.count("by reference evaluator") == 4


def test_doctor_says_what_language_models_lack(handheld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from handheld.runtime.errors import RuntimeMissing
    from handheld.runtime.flash import engine

    def unbuilt() -> None:
        raise RuntimeMissing("The flash engine's native part is not installed.")

    monkeypatch.setattr(engine, "load_native", unbuilt)
    monkeypatch.setattr("handheld.cli.doctor.LLM_PACKAGES", ("a-package-that-is-not-there",))
    status, text, _ = handheld("doctor")
    assert status == 0  # decoders can be exported all the same
    assert "packing needs a-package-that-is-not-there: pip install 'handheld[llm]'" in text
    assert "language models: The flash engine's native part is not installed." in text


def test_ctrl_c_while_decoding_says_how_many_frames_are_in_the_partial_video(bundle: Path, tmp_path: Path) -> None:
    import av

    clips = 5000  # some seconds of work, of which the first frames are enough
    write_latents(tmp_path / "latents.safetensors", np.zeros((clips, 48, 2, 4, 4), np.float32), {})
    partial = tmp_path / "out.partial.mp4"
    command = [sys.executable, "-m", "handheld.cli", "decode", str(bundle), str(tmp_path / "latents.safetensors")]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "out.mp4")],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores it, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not (partial.exists() and partial.stat().st_size > 5000):
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, text = process.communicate()
    assert process.returncode == 130
    with av.open(str(partial)) as container:
        kept = sum(1 for _ in container.decode(video=0))
    assert 0 < kept < 3 * clips
    assert text.endswith(f"handheld: interrupted\n{partial} holds the first {kept} frames.\n")
    assert not (tmp_path / "out.mp4").exists()


def test_fit_proposes_a_plan_within_the_budget_and_exits_with_1_where_nothing_fits(
    handheld: Run, tmp_path: Path
) -> None:
    size = ["--height", 64, "--width", 64, "--frames", 9]
    file = tmp_path / "fit.json"
    status, text, _ = handheld("fit", "tiny", "-t", "onnx", *size, "--budget", "300MB", "--json", file)
    assert status == 0
    assert all(part in text for part in ("up_blocks.1", "whole clip", "streamed, proposed", "fits"))
    (found,) = json.loads(file.read_text())["targets"]
    assert found["proposal"]["peak_bytes"] <= 300_000_000
    assert found["overhead"]["source"]
    status, text, _ = handheld("fit", "tiny", "-t", "onnx", *size, "--budget", "50MB")
    assert status == 1
    assert "nothing fits 50.0 MB" in text


def test_an_export_within_a_budget_streams_and_verifies(handheld: Run, tmp_path: Path) -> None:
    size = ["--height", 32, "--width", 32, "--frames", 3]
    made = tmp_path / "made"
    status, _, text = handheld("export", "tiny", "-t", "onnx", *size, "--stream", "--budget", "200MB", "-o", made)
    assert status == 0, text
    assert handheld("verify", made)[0] == 0
    for wrong in (["--budget", "200MB"], ["--stream", "--budget", "much"], ["--stream", "--budget", "1MB"]):
        status, _, text = handheld("export", "tiny", "-t", "onnx", *size, *wrong, "-o", tmp_path / "none")
        assert status == 1
        assert wrong[-1] in text
        assert not (tmp_path / "none").exists()


def test_recipes_are_listed(handheld: Run) -> None:
    status, text, _ = handheld("distill", "--list")
    assert status == 0
    assert all(name in text for name in ("demo", "turbo_vaed_ltx", "turbo_vaed_hunyuan"))


def test_an_altered_artefact_fails_by_hash(handheld: Run, bundle: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    model = copy / "onnx" / "decoder" / "model.onnx"
    body = bytearray(model.read_bytes())
    body[len(body) // 2] ^= 1
    model.write_bytes(body)
    status, text, _ = handheld("verify", copy)
    assert status == 1
    assert "fail" in text
    assert "hash" in text.lower() or "sha" in text.lower()


def _text_as_video(tmp: Path, bundle: Path) -> list:
    (tmp / "clip.mp4").write_text("not a video")
    return ["distill", "demo", "--videos", tmp / "clip.mp4", "-o", tmp / "run"]


def _two_typos(tmp: Path, bundle: Path) -> list:
    (tmp / "recipe.yaml").write_text(RECIPE.replace("steps", "stps").replace("preset", "prest"))
    return ["distill", tmp / "recipe.yaml", "-o", tmp / "run"]


def _wrong_channels(tmp: Path, bundle: Path) -> list:
    save_file({"latents": np.zeros((1, 16, 2, 4, 4), np.float32)}, tmp / "latents.safetensors")
    return ["decode", bundle, tmp / "latents.safetensors", "-o", tmp / "out.mp4"]


def _corrupt_latents(tmp: Path, bundle: Path) -> list:
    (tmp / "latents.safetensors").write_bytes(b"\x00" * 100)
    return ["decode", bundle, tmp / "latents.safetensors", "-o", tmp / "out.mp4"]


def _corrupt_checkpoint(tmp: Path, bundle: Path) -> list:
    (tmp / "weights.safetensors").write_bytes(b"\xff" * 100)
    return ["export", tmp / "weights.safetensors", "--config", "tiny", "-t", "onnx", "-o", tmp / "made"]


def _unwritable_output(tmp: Path, bundle: Path) -> list:
    (tmp / "file").write_text("in the way")
    return ["export", "tiny", "-t", "onnx", "-o", tmp / "file" / "made"]


def _unwritable_run(tmp: Path, bundle: Path) -> list:
    (tmp / "file").write_text("in the way")
    (tmp / "recipe.yaml").write_text(RECIPE)
    return ["distill", tmp / "recipe.yaml", "--videos", tmp, "-o", tmp / "file" / "run"]


def _existing_bundle(tmp: Path, bundle: Path) -> list:
    return ["export", "tiny", "-t", "onnx", "-o", bundle]


def _unknown_target(tmp: Path, bundle: Path) -> list:
    return ["check", "tiny", "-t", "windows", "--json", tmp / "report.json"]


def _unwritable_report(tmp: Path, bundle: Path) -> list:
    size = ["--height", 16, "--width", 16, "--frames", 3]
    return ["check", "tiny", "-t", "onnx", *size, "--json", tmp / "none" / "report.json"]


def _no_recipe(tmp: Path, bundle: Path) -> list:
    return ["distill", "-o", tmp / "run"]


def _not_a_run(tmp: Path, bundle: Path) -> list:
    return ["export", tmp, "-t", "onnx", "-o", tmp / "made"]


def _config_of_a_preset(tmp: Path, bundle: Path) -> list:
    return ["export", "tiny", "--config", "ltx", "-t", "onnx", "-o", tmp / "made"]


def _unknown_rewrite(tmp: Path, bundle: Path) -> list:
    return ["export", "tiny", "--without", "conv3d_tabs", "-t", "onnx", "-o", tmp / "made"]


def _impossible_size(tmp: Path, bundle: Path) -> list:
    return ["export", "tiny", "-t", "onnx", "--height", 33, "--frames", 4, "-o", tmp / "made"]


def _malformed_shape(tmp: Path, bundle: Path) -> list:
    return ["export", "tiny", "-t", "android", "--shape", "16x16", "-o", tmp / "made"]


def _shape_twice(tmp: Path, bundle: Path) -> list:
    shapes = ("--shape", "16x16x3", "--shape", "016x16x3")
    return ["export", "tiny", "-t", "android", *shapes, "-o", tmp / "made"]


def _impossible_shape(tmp: Path, bundle: Path) -> list:
    shapes = ("--shape", "16x16x3", "--shape", "33x16x4")
    return ["export", "tiny", "-t", "android", *shapes, "-o", tmp / "made"]


def _shape_and_height(tmp: Path, bundle: Path) -> list:
    return ["export", "tiny", "-t", "android", "--shape", "16x16x3", "--height", 16, "-o", tmp / "made"]


def _several_shapes_for_ios16(tmp: Path, bundle: Path) -> list:
    shapes = ("--shape", "16x16x3", "--shape", "24x24x3")
    return ["export", "tiny", "-t", "ios16", *shapes, "-o", tmp / "made"]


def _several_shapes_with_auto(tmp: Path, bundle: Path) -> list:
    shapes = ("--shape", "16x16x3", "--shape", "24x24x3")
    return ["export", "tiny", "-t", "android", "--precision", "auto", *shapes, "-o", tmp / "made"]


def _floor_without_auto(tmp: Path, bundle: Path) -> list:
    return ["export", "tiny", "-t", "onnx", "--precision", "int8", "--min-psnr", 40, "-o", tmp / "made"]


def _small_calibration(tmp: Path, bundle: Path) -> list:
    write_latents(tmp / "real.safetensors", np.zeros((2, 48, 2, 4, 4), np.float32), {})
    size = ("--height", 64, "--width", 64, "--frames", 3)
    return ["export", "tiny", "-t", "onnx", *size, "--calibration", tmp / "real.safetensors", "-o", tmp / "made"]


def _text_to_encode(tmp: Path, bundle: Path) -> list:
    (tmp / "clip.mp4").write_text("not a video")
    return ["encode", tmp / "clip.mp4", "--for", bundle, "-o", tmp / "latents.safetensors"]


def test_check_prints_what_is_not_taken_and_writes_the_whole_report(handheld: Run, tmp_path: Path) -> None:
    size = ["--height", 32, "--width", 32, "--frames", 3]
    file = tmp_path / "report.json"
    status, text, _ = handheld("check", "tiny", "-t", "android", "-t", "onnx", *size, "--json", file)
    assert status == 0
    assert all(part in text for part in ("conv3d_taps", "conv_in.conv", "refused", "multiply-adds", "all repaired"))
    written = json.loads(file.read_text())
    assert [report["target"] for report in written["reports"]] == ["android", "onnx"]
    assert len(written["reports"][0]["findings"]) > 10


def test_check_exits_with_1_where_something_is_left(handheld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from handheld.convert import TARGETS

    fp32 = replace(TARGETS["android"].precisions["fp32"], rewrites=())
    monkeypatch.setitem(TARGETS, "android", replace(TARGETS["android"], precisions={"fp32": fp32}))
    status, text, _ = handheld("check", "tiny", "-t", "android", "--height", 32, "--width", 32, "--frames", 3)
    assert status == 1
    assert "NOT LEGAL" in text
    assert "left after the rewrites" in text


def test_check_needs_no_package_of_the_target(handheld: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handheld.convert.target.importlib.util.find_spec", lambda name: None)
    size = ["--height", 32, "--width", 32, "--frames", 3]
    assert handheld("check", "tiny", "-t", "android", "-t", "ios", *size)[0] == 0


@pytest.mark.parametrize(
    ("mistake", "parts"),
    [
        (_text_as_video, ["clip.mp4", "No video"]),
        (_two_typos, ["stps", "prest", "recipe.yaml:3", "recipe.yaml:6"]),
        (_wrong_channels, ["16x2x4x4", "48x2x4x4"]),
        (_corrupt_latents, ["latents.safetensors", "not a whole safetensors file"]),
        (_corrupt_checkpoint, ["weights.safetensors", "corrupt"]),
        (_unwritable_output, ["cannot be written"]),
        (_unwritable_run, ["file"]),
        (_existing_bundle, ["exists", "overwrite"]),
        (_unknown_target, ["no target 'windows'", "android"]),
        (_unwritable_report, ["report.json cannot be written"]),
        (_no_recipe, ["Give a recipe"]),
        (_not_a_run, ["config.json"]),
        (_config_of_a_preset, ["--config ltx", "the preset tiny"]),
        (_unknown_rewrite, ["No rewrite conv3d_tabs", "conv3d_taps"]),
        (_impossible_size, ["height=33", "nearest: 32 and 40", "frames=4", "nearest: 3 and 5"]),
        (_malformed_shape, ["The shape 16x16", "HEIGHTxWIDTHxFRAMES"]),
        (_shape_twice, ["The shape 016x16x3 is given twice"]),
        (_impossible_shape, ["height=33", "frames=4"]),
        (_shape_and_height, ["Shapes take the place of height"]),
        (_several_shapes_for_ios16, ["ios16 holds one shape", "export once per shape", "android"]),
        (_several_shapes_with_auto, ["Precision auto chooses for one shape"]),
        (_floor_without_auto, ["lowest PSNR (40 dB)", "precision auto", "int8"]),
        (_small_calibration, ["real.safetensors", "2x4x4", "2x8x8"]),
        (_text_to_encode, ["clip.mp4", "not a video"]),
    ],
)
def test_a_mistake_gets_one_clear_message_and_leaves_nothing(
    mistake, parts: list[str], handheld: Run, bundle: Path, tmp_path: Path
) -> None:
    command = mistake(tmp_path, bundle)
    before = sorted(p for p in tmp_path.rglob("*"))
    status, _, text = handheld(*command)
    assert status == 1
    assert "Traceback" not in text
    assert text.count("handheld: ") == 1
    for part in parts:
        assert part in text
    left = [p for p in tmp_path.rglob("*") if p not in before and p.is_file()]
    assert left == []


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_export_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "handheld.cli", "export", "tiny", "-t", "onnx", "-o", str(tmp_path / "made")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if "lowering" in line:
                process.kill()
                break
    assert not (tmp_path / "made").exists()


def test_compare_shows_profiles_and_gates_on_slower(handheld: Run, tmp_path: Path) -> None:
    fixture = Path(__file__).resolve().parents[1] / "fixtures" / "profiles" / "host.json"
    tree = json.loads(fixture.read_text())
    for subject in tree["subjects"][:2]:
        for one in subject["rounds"]:
            one["latency_ns"] = [2 * ns for ns in one["latency_ns"]]
    (tmp_path / "host.json").write_text(json.dumps(tree))
    status, text, errors = handheld("compare", fixture, tmp_path / "host.json", "--out", tmp_path / "page.html")
    assert status == 0, errors
    assert "says nothing about a phone" in text
    assert (tmp_path / "page.html").is_file()
    status, text, _ = handheld("compare", fixture, tmp_path / "host.json", "--fail-if-slower", "5%")
    assert status == 1
    assert "SLOWER: " in text
    status, text, _ = handheld("compare", tmp_path / "host.json", fixture, "--fail-if-slower", "5%")
    assert status == 0
    assert "2 judged" in text
    for limit in ("fast", "5", "-1%"):
        status, _, errors = handheld("compare", fixture, tmp_path / "host.json", "--fail-if-slower", limit)
        assert status == 1
        assert 'takes a percentage such as "5%"' in errors


def test_estimate_is_labelled_and_takes_a_profile_to_calibrate_by(handheld: Run) -> None:
    fixtures = Path(__file__).resolve().parents[1] / "fixtures" / "profiles"
    clip = ("--height", 32, "--width", 32, "--frames", 3)
    status, text, errors = handheld("estimate", "tiny", "-d", "iphone-16-pro", "-d", "pixel-9", *clip)
    assert status == 0, errors
    assert "ESTIMATE, not measured" in text
    assert "Each row predicted from the others" in text
    assert "pixel-9: no rates are known for it" in text
    ios = fixtures / "ios.json"
    status, text, errors = handheld("estimate", "tiny", "-d", "iphone-16-pro", "--calibrate", ios, *clip)
    assert status == 0, errors
    assert "rates fitted to ios.json" in text
    status, _, errors = handheld("estimate", "tiny", "-d", "pixel-9", "--calibrate", ios, *clip)
    assert status == 1
    assert "was measured on iPhone17,1; pixel-9 is Pixel 9" in errors
