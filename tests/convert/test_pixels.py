"""Frames as 8-bit RGBA: the tail of a graph, its artefacts on each runtime, and what reads them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import handheld
from handheld.convert import TARGETS, ExportError, export, resolve_targets
from handheld.convert.coreml.evaluator import verify_coreml
from handheld.convert.graph.capture import capture
from handheld.convert.pixels import append_rgba8, in_levels, to_rgba8
from handheld.decoding import decode
from handheld.runtime.bundle import Bundle, read_bundle
from handheld.runtime.errors import BundleError
from handheld.runtime.manifest import Tolerance
from handheld.runtime.session import SESSIONS, open_session
from handheld.runtime.verify import verify
from handheld.runtime.video import to_pixels

from .conftest import small_decoder

RANGE = (-1.0, 1.0)


@functools.cache
def small() -> tuple[nn.Module, Tensor]:
    """The decoder, and latents of 3 frames of 16x16."""
    model = small_decoder()
    return model, torch.randn(model.spec.latent_shape(frames=3, height=16, width=16))


def lower(out: Path, *targets: str, precision: str | None = None) -> Bundle:
    model, latents = small()
    return export(
        *(model, latents, out),
        targets=resolve_targets(targets),
        precision=precision,
        name="test",
        provenance={},
        pixels="rgba8",
    )


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Bundles of pixels, each lowered once for the whole module."""

    @functools.cache
    def make(target: str, precision: str | None = None) -> Bundle:
        return lower(tmp_path_factory.mktemp(target) / "bundle", target, precision=precision)

    return make


class Twice(nn.Module):
    """Values of all of a range and beyond, as pictures or clips."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0


def appended(shape: tuple[int, ...], form: str, value_range: tuple[float, float]) -> tuple[fx.GraphModule, Tensor]:
    low, high = value_range
    x = torch.linspace(low - 0.3, high + 0.3, math.prod(shape)).reshape(shape)
    graph = capture(Twice(), (x,))
    append_rgba8(graph, form, value_range)  # type: ignore[arg-type]
    return graph, x


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("shape", [(1, 3, 2, 4, 6), (1, 3, 4, 6)])
def test_the_tail_makes_rgba_rows_of_clips_and_images(
    shape: tuple[int, ...], value_range: tuple[float, float]
) -> None:
    graph, x = appended(shape, "uint8", value_range)
    found = graph(x)
    assert found.dtype == torch.uint8
    assert found.shape == (*shape[:1], *shape[2:], 4)
    rgb = to_pixels((2 * x).numpy(), value_range)
    assert rgb.min() == 0
    assert rgb.max() == 255
    # `to_pixels` rounds halves to even, the tail up: no more than that may differ.
    assert np.abs(found[0].reshape((*rgb.shape[:-1], 4))[..., :3].numpy().astype(int) - rgb).max() <= 1
    assert (found[..., 3] == 255).all()
    assert torch.equal(found, to_rgba8(2 * x, value_range))


def test_a_packed_pixel_has_the_same_four_bytes() -> None:
    graph, x = appended((1, 3, 2, 4, 6), "int32", RANGE)
    found = graph(x)
    assert (found.dtype, tuple(found.shape)) == (torch.int32, (1, 2, 4, 6))
    as_bytes = found.numpy().astype("<i4").view(np.uint8).reshape(1, 2, 4, 6, 4)
    assert np.array_equal(as_bytes, to_rgba8(2 * x, RANGE).numpy())


def test_tolerances_in_levels_hold_what_rounding_can_do() -> None:
    """Errors of the tolerance's size, on values that lie anywhere between two levels."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand((1, 3, 1, 256, 256), generator=generator) * 1.8 - 0.9
    for psnr in (35.0, 50.0, 60.0):
        error = torch.randn(frames.shape, generator=generator)
        error *= (2.0 / 10 ** (psnr / 20)) / error.square().mean().sqrt()
        limit = in_levels(Tolerance(error.abs().max().item(), "test", psnr), RANGE)
        off = to_rgba8(frames + error, RANGE).double() - to_rgba8(frames, RANGE).double()
        assert limit.fault(off.abs().max().item(), 10 * math.log10(255**2 / off.square().mean().item())) == ""
        worse = to_rgba8(frames + 2 * error, RANGE).double() - to_rgba8(frames, RANGE).double()
        assert limit.fault(0.0, 10 * math.log10(255**2 / worse.square().mean().item())) != ""
    assert in_levels(Tolerance(1e-3, "test"), RANGE).max_abs == 1.0


@pytest.mark.parametrize(("target", "precision"), [("onnx", "fp32"), ("onnx", "fp16"), ("android", "fp32")])
def test_artefacts_give_the_pixels_of_the_eager_frames(target: str, precision: str, bundles: Callable) -> None:
    bundle = bundles(target, precision)
    (verdict,) = verify(bundle)
    assert (verdict.status, verdict.reason) == ("pass", "")
    model, latents = small()
    with open_session(bundle, target) as session:
        found = session.run({"latents": latents.numpy()})["frames"]
    with torch.no_grad():
        wanted = to_rgba8(model(latents), RANGE).numpy()
    assert (found.dtype, found.shape) == (np.uint8, (1, 3, 16, 16, 4))
    limit = 1 if precision == "fp32" else bundle.artifacts[0].tolerance.max_abs
    assert np.abs(found.astype(int) - wanted).max() <= limit


def test_the_manifest_says_what_the_pixels_are(bundles: Callable) -> None:
    bundle = read_bundle(bundles("onnx", "fp32").path)
    (frames,) = bundle.manifest.outputs
    assert (frames.dtype, frames.layout, frames.shape, frames.range) == (
        *("uint8", "NTHWC"),
        *((1, 3, 16, 16, 4), (0.0, 255.0)),
    )
    assert bundle.manifest.kind == "video_decoder"
    assert bundle.artifacts[0].output_dtype == "uint8"
    assert bundle.artifacts[0].tolerance.max_abs == 1.0
    assert bundle.golden()[1]["frames"].dtype == np.uint8
    assert (frames.picture(frames.shape), frames.frames(frames.shape)) == ((16, 16), 3)


def test_on_xnnpack_only_the_cast_to_bytes_stays_outside(bundles: Callable) -> None:
    delegation = bundles("android", "fp32").artifacts[0].delegation
    assert delegation["delegates"] == 1
    assert delegation["ops_outside"] == {"dim_order_ops::_to_dim_order_copy": 1}


def test_core_ml_gives_a_pixel_as_one_integer_and_is_verified(bundles: Callable) -> None:
    bundle = bundles("ios", "fp16")
    assert bundle.artifacts[0].output_dtype == "int32"
    verdict = verify_coreml(bundle, bundle.artifacts[0])
    assert (verdict.status, verdict.reason) == ("pass", "")
    assert verdict.max_abs_error is not None
    assert verdict.max_abs_error == int(verdict.max_abs_error)


def test_core_ai_gives_bytes(bundles: Callable) -> None:
    if (reason := SESSIONS["coreai"].unavailable()) or TARGETS["ios27"].missing():
        pytest.skip(reason or "needs handheld[coreai]")
    bundle = bundles("ios27", "fp16")
    (verdict,) = verify(bundle)
    assert (verdict.status, verdict.reason) == ("pass", "")
    assert bundle.artifacts[0].output_dtype == "uint8"


@pytest.mark.slow
@pytest.mark.parametrize(("target", "form"), [("ios-executorch", "int32"), ("android-vulkan", "uint8")])
def test_other_executorch_targets_lower_pixels_in_one_delegate(target: str, form: str, bundles: Callable) -> None:
    (artifact,) = bundles(target).artifacts
    assert artifact.output_dtype == form
    assert artifact.delegation["delegates"] == 1
    assert sum(artifact.delegation["ops_outside"].values()) == (form == "uint8")


def test_pixels_are_decoded_to_a_video_of_their_size(bundles: Callable, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"latents": small()[1]}, tmp_path / "latents.safetensors")
    done = decode(bundles("onnx", "fp32"), tmp_path / "latents.safetensors", tmp_path / "out.mp4")
    assert (done.frames, done.size) == (3, (16, 16))


def test_an_image_decoder_gives_one_picture(tmp_path: Path) -> None:
    from PIL import Image
    from safetensors.torch import save_file

    model = nn.Sequential(nn.Conv2d(4, 48, 3, padding=1), nn.PixelShuffle(4), nn.Tanh()).eval()
    latents = torch.randn(1, 4, 4, 6)
    bundle = handheld.export(model, tmp_path / "bundle", example=latents, targets=["onnx"], pixels="rgba8")
    assert (bundle.manifest.kind, bundle.manifest.outputs[0].layout) == ("image_decoder", "NHWC")
    assert verify(bundle)[0].status == "pass"
    save_file({"latents": latents}, tmp_path / "latents.safetensors")
    done = decode(bundle, tmp_path / "latents.safetensors", tmp_path / "out.png")
    with torch.no_grad():
        wanted = to_rgba8(model(latents), RANGE)[0, ..., :3].numpy()
    assert done.size == (16, 24)
    assert np.abs(np.asarray(Image.open(tmp_path / "out.png")).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pixels": "rgb"}, "there are float, rgba8"),
        ({"pixels": "rgba8", "stream": True}, "streamed artefact gives frames as floats"),
        ({"pixels": "rgba8", "precision": "auto"}, "name a precision"),
    ],
)
def test_what_does_not_go_with_pixels_is_refused(options: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=says):
        handheld.export("tiny", tmp_path / "bundle", targets=["onnx"], height=32, width=32, **options)


@pytest.mark.parametrize(
    ("side", "values"),
    [
        ("outputs", {"layout": "NCTHW"}),
        ("outputs", {"dtype": "float32"}),
        ("outputs", {"range": [0, 1]}),
        ("outputs", {"shape": [1, 3, 16, 16, 3]}),
        ("inputs", {"dtype": "uint8"}),
        ("artifacts", {"output_dtype": "float32"}),
    ],
)
def test_manifests_of_half_a_claim_are_refused(side: str, values: dict, bundles: Callable, tmp_path: Path) -> None:
    tree = json.loads((bundles("onnx", "fp32").path / "manifest.json").read_text())
    tree[side][0].update(values)
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(BundleError, match=rf"{side}\[0\]"):
        read_bundle(tmp_path)
