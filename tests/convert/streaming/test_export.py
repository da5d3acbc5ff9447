"""Streamed artefacts, really lowered: equal to the decoder on any length, one copy of the weights, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handheld.convert import ExportError, export, pipeline, resolve_targets
from handheld.convert.coreml.evaluator import verify_coreml
from handheld.convert.streaming import Cut, PassCut
from handheld.convert.streaming.memory import UnitSizes, stream_size
from handheld.convert.streaming.overheads import overhead_of
from handheld.models import PRESETS, TurboVAEDecoder
from handheld.runtime.bundle import Bundle, read_bundle
from handheld.runtime.errors import BundleError, RuntimeFailure
from handheld.runtime.session import open_session
from handheld.runtime.streaming import StreamSession
from handheld.runtime.verify import verify

TARGETS = ("onnx", "android", "ios")
# The head on the whole frame; the tail in two strips, from a spool.
CUTS = (PassCut((Cut(3, 2),)), PassCut((Cut(3, 5),), strips=2))


def decoder() -> TurboVAEDecoder:
    config = replace(
        PRESETS["tiny"], latent_channels=4, decoder_block_out_channels=(32, 32), decoder_layers_per_block=(1, 1, 1)
    )
    torch.manual_seed(0)
    return TurboVAEDecoder(config).eval()


def latents(frames: int, height: int = 8) -> torch.Tensor:
    return torch.randn(1, 4, frames, height, 2, generator=torch.Generator().manual_seed(frames))


def lower(out: Path, *targets: str, **options: object) -> Bundle:
    settings = {"stream": CUTS, "more": [latents(1)]} | options
    model = settings.pop("model", None) or decoder()
    chosen = resolve_targets(targets)
    return export(model, latents(4), out, targets=chosen, name="test", provenance={}, **settings)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return lower(tmp_path_factory.mktemp("streamed") / "bundle", *TARGETS)


def test_artefacts_verify_on_both_lengths(bundle: Bundle) -> None:
    onnx, android, _ = verify(bundle)
    ios = verify_coreml(bundle, bundle.artifact("ios"))
    assert [(v.status, v.reason) for v in (onnx, android, ios)] == [("pass", "")] * 3
    assert bundle.artifact("ios").input_dtype == "float16"  # its states take half as much
    assert bundle.shapes == (None, "shape_64x16x1")


@pytest.mark.parametrize("limit", [pipeline._WHOLE_GOLDEN, 0])
def test_golden_frames_are_the_whole_clips_whichever_way_they_are_made(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = []
    model, clip = decoder(), latents(4)
    stream = pipeline.stream_frames
    monkeypatch.setattr(pipeline, "_WHOLE_GOLDEN", limit)
    monkeypatch.setattr(pipeline, "stream_frames", lambda *args: streamed.append(args) or stream(*args))
    made = pipeline._clip(model, clip, (), first=True, streamed=True)
    assert bool(streamed) == (limit == 0)
    # Pieces are summed in another order; the whole clip itself is 2e-5 from fp64 here.
    torch.testing.assert_close(made.frames, model.decode(clip), rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", ["onnx", "android"])
@pytest.mark.parametrize("frames", [2, 7])
def test_clips_of_other_lengths_are_those_of_the_decoder(target: str, frames: int, bundle: Bundle) -> None:
    clip = latents(frames)
    with open_session(bundle, target) as session:
        assert isinstance(session, StreamSession)
        pieces = [*session.stream(iter(np.split(clip.numpy(), frames, axis=2)))]
    np.testing.assert_allclose(np.concatenate(pieces, axis=2), decoder().decode(clip).numpy(), atol=1e-4)


def test_every_segment_is_one_delegate_with_nothing_outside(bundle: Bundle) -> None:
    delegation = bundle.artifact("android").delegation
    assert delegation["delegates"] == 2
    assert delegation["ops_outside"] == {}
    assert delegation["refused"] == []


def test_weights_are_predicted(bundle: Bundle) -> None:
    with torch.device("meta"):
        model = TurboVAEDecoder(decoder().config).eval()
    precision = resolve_targets(["onnx"])[0].precision("fp32")
    size = stream_size(CUTS, 4, UnitSizes(model, 8, 2, precision), overhead_of("onnxruntime"))
    for name, program in size.programs.items():
        (folder,) = (bundle.path / "onnx" / "stream").glob(f"{name}*")
        (graph,), (weights,) = folder.glob("*.onnx"), folder.glob("*.onnx.data")
        apart = weights.stat().st_size  # all but small constants, which are in the graph
        assert 0.98 * apart <= program.weight_bytes <= apart + graph.stat().st_size


def test_the_manifest_with_its_plan_reads_back(bundle: Bundle) -> None:
    assert read_bundle(bundle.path).manifest == bundle.manifest
    for artifact in bundle.artifacts:
        assert artifact.stream is not None
        programs = {segment.program for segment in artifact.stream.segments}
        assert programs == {path.name for path in (bundle.path / artifact.path).iterdir()}


def test_the_weights_are_stored_once(bundle: Bundle) -> None:
    weights_bytes = sum(p.numel() for p in decoder().parameters()) * 4
    overhead = 250_000  # of graphs: the decoder is a very small one
    assert bundle.artifact("onnx").size_bytes < weights_bytes * 1.1 + overhead
    assert bundle.artifact("android").size_bytes < weights_bytes * 1.1 + overhead


def test_an_altered_segment_is_refused_before_it_is_loaded(bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bundle.path, tmp_path / "copy")
    copy = read_bundle(tmp_path / "copy")
    (copy.path / "android" / "stream" / "segment_1.pte").write_bytes(b"")
    with pytest.raises(BundleError, match="is truncated"):
        open_session(copy, "android")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s: s["passes"][1]["segments"][0].update(halo=99), "stream.passes[1].strips[0]: rows"),
        (
            lambda s: s["passes"][1]["segments"][0]["end"].update(dropped=0),
            "stream.passes: they make 8 frames of 4, methods[0]",
        ),
        (lambda s: s["passes"].pop(), "stream.passes: they make frames of"),
    ],
)
def test_a_plan_that_contradicts_the_bundle_is_refused(spoil, says: str, bundle: Bundle, tmp_path: Path) -> None:
    tree = json.loads((bundle.path / "manifest.json").read_text())
    spoil(tree["artifacts"][0]["stream"])
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(BundleError) as caught:
        read_bundle(tmp_path)
    assert f"artifacts[0].{says}" in str(caught.value)


def test_another_height_is_another_export(bundle: Bundle) -> None:
    with open_session(bundle, "onnx") as session, pytest.raises(RuntimeFailure, match="Another height or width"):
        session.run({"latents": latents(4, height=3).numpy()})


@pytest.mark.parametrize(
    ("targets", "options", "says"),
    [
        (["android-vulkan"], {}, "Target android-vulkan is not exported for streaming"),
        (["onnx"], {"precision": "int8"}, "Precision int8 is calibrated .* onnx streams in fp32, fp16"),
        (
            ["onnx"],
            {"model": torch.nn.Identity()},
            "A Identity is not exported for streaming: it does not declare its layers",
        ),
        (["onnx"], {"more": [latents(1, height=3)]}, "has one height and width"),
        (["onnx"], {"stream": (PassCut((Cut(3, 1),)),)}, "The cuts are of 3 units"),
    ],
)
def test_what_is_not_streamed_is_refused_and_leaves_nothing(
    targets: list[str], options: dict, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=says):
        lower(tmp_path / "bundle", *targets, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "android", "ios"])
def test_half_precision_streams_within_its_tolerance(target: str, tmp_path: Path) -> None:
    made = lower(tmp_path / "bundle", target, precision="fp16")
    (verdict,) = [verify_coreml(made, made.artifacts[0])] if target == "ios" else verify(made)
    assert (verdict.status, verdict.reason) == ("pass", "")
    assert not math.isnan(verdict.max_abs_error)
