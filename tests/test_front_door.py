"""One door for every decoder: what can be named, a family from outside the package, latents of other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import handheld
from handheld import Decoder, ExportError, Family, LatentSpec, LatentStatistics, ModelError
from handheld.models.layers import Border, Framewise, Growth, Layer, Taps, Window, in_turn

CHANNELS = 4


@dataclass(frozen=True)
class ToyConfig:
    """A toy family's configuration."""

    width: int = 8

    @property
    def spec(self) -> LatentSpec:
        return LatentSpec(CHANNELS, spatial=2, temporal=1)

    def to_json(self) -> str:
        return json.dumps({"_class_name": "ToyDecoder", **asdict(self)})

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> ToyConfig:
        return cls(data["width"])


class Toy(Decoder):
    """A convolution over three frames, zeros outside the clip, and a doubling of the picture."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.over_time = nn.Conv3d(CHANNELS, config.width, 3, padding=(0, 1, 1))
        self.to_rgb = nn.Conv2d(config.width, 12, 1)

    @property
    def spec(self) -> LatentSpec:
        return self.config.spec

    @property
    def statistics(self) -> LatentStatistics:
        return LatentStatistics((0.5,), (2.0,), 1.5)

    def doubled(self, x: Tensor) -> Tensor:
        n, c, t, h, w = x.shape
        frames = self.to_rgb(torch.tanh(x).transpose(1, 2).reshape(n * t, c, h, w))
        return nn.functional.pixel_shuffle(frames, 2).reshape(n, t, 3, 2 * h, 2 * w).transpose(1, 2)

    def layers(self) -> dict[str, Layer]:
        return {
            "over_time": Window((self.over_time,), Taps(3, 1, Border.ZEROS), rows=1),
            "to_rgb": Growth((self.doubled,), scale=2),
        }

    def forward(self, latents: Tensor) -> Tensor:
        return in_turn(tuple(self.layers().values()), latents)


TOY = Family(
    name="toy",
    title="A toy of the test",
    config=ToyConfig,
    decoder=Toy,
    presets={"toy-8": ToyConfig()},
    class_names=("ToyDecoder",),
    own_weights=lambda state, config: {name.removeprefix("decoder."): value for name, value in state.items()},
    student=True,
)


@pytest.fixture
def toy() -> Iterator[Family]:
    """The toy family, known for the time of a test."""
    handheld.FAMILIES.add(TOY)
    yield TOY
    del handheld.FAMILIES["toy"]


def test_a_family_from_outside_is_exported_streamed_and_verified_by_its_preset(toy: Family, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"frames": 5, "height": 16, "width": 16}
    whole = handheld.export("toy-8", tmp_path / "whole", targets=["onnx", "android"], **sizes)
    assert [verdict.status for verdict in handheld.verify(whole)] == ["pass", "pass"]
    assert [artifact.delegation for artifact in whole.artifacts][1]["ops_outside"] == {}
    streamed = handheld.export("toy-8", tmp_path / "streamed", targets=["onnx"], stream=True, **sizes)
    (verdict,) = handheld.verify(streamed)
    assert verdict.status == "pass"
    decoder = handheld.from_preset("toy-8").double()
    latents = torch.randn(1, CHANNELS, 7, 4, 4, dtype=torch.float64)
    pieces = torch.cat([*decoder.stream(latents, chunk=2)], dim=2)
    assert (pieces - decoder.decode(latents)).abs().max() < 1e-10


def test_a_saved_decoder_of_a_family_from_outside_is_read_by_its_class_name(toy: Family, tmp_path: Path) -> None:
    decoder = handheld.from_preset("toy-8")
    decoder.save_pretrained(tmp_path / "toy")
    opened = handheld.open_source(str(tmp_path / "toy"))
    latents = torch.randn(1, CHANNELS, 2, 4, 4)
    assert torch.equal(opened.model(latents), decoder.decode(latents))
    (tmp_path / "toy" / "config.json").write_text('{"_class_name": "Other"}')
    with pytest.raises(ModelError, match="no family's"):
        handheld.open_source(str(tmp_path / "toy"))


def test_names_of_families_presets_and_classes_are_unique(toy: Family) -> None:
    with pytest.raises(ModelError, match="the family toy"):
        handheld.FAMILIES.add(TOY)


class Doubling(nn.Module):
    """A module of one's own: an image decoder that says nothing of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        return torch.sigmoid(nn.functional.interpolate(self.conv(latents), scale_factor=2.0))


def test_a_module_is_exported_with_an_example(tmp_path: Path) -> None:
    example = torch.randn(1, CHANNELS, 6, 8)
    bundle = handheld.export(Doubling(), tmp_path / "b", targets=["onnx", "android"], example=example)
    assert [verdict.status for verdict in handheld.verify(bundle)] == ["pass", "pass"]
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert manifest["kind"] == "image_decoder"
    assert [spec["layout"] for spec in manifest["inputs"] + manifest["outputs"]] == ["NCHW", "NCHW"]
    with pytest.raises(ModelError, match="does not say which latents it takes"):
        handheld.export(Doubling(), tmp_path / "c", targets=["onnx"])
    with pytest.raises(ModelError, match="no other size"):
        handheld.export(Doubling(), tmp_path / "c", targets=["onnx"], example=example, height=64)
    assert not (tmp_path / "c").exists()


FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(4, 3, 3, padding=1), nn.Tanh()), torch.randn(1, 4, 3, 8, 8)

def text():
    return "no module"
"""


def test_a_factory_in_a_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "mymodel.py").write_text(FACTORY)
    opened = handheld.open_source(f"{tmp_path}/mymodel.py:make")
    latents, origin = opened.example()
    assert tuple(latents.shape) == (1, 4, 3, 8, 8)
    assert "given" in origin
    for name, says in (("text", "returned str"), ("nothing", "has no function nothing; it has make, text")):
        with pytest.raises(ModelError, match=says):
            handheld.open_source(f"{tmp_path}/mymodel.py:{name}")
    with pytest.raises(ModelError, match="no module not_there"):
        handheld.open_source("not_there:make")


def test_a_teacher_is_a_source_by_its_name() -> None:
    opened = handheld.open_source(None, teacher="embedded")
    assert opened.spec is not None
    assert opened.spec.channels == 48
    assert opened.provenance["teacher"]["name"] == "embedded"
    with pytest.raises(ModelError, match="No teacher 'embeded'"):
        handheld.open_source(None, teacher="embeded")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_pipelines_own_latents_decode_without_arithmetic_by_hand(
    dtype: torch.dtype, toy: Family, tmp_path: Path
) -> None:
    bundle = handheld.export("toy-8", tmp_path / "b", targets=["onnx"], frames=3, height=16, width=16)
    inputs, _ = bundle.golden()
    plain = torch.from_numpy(inputs["latents"])
    statistics = handheld.from_preset("toy-8").statistics
    assert statistics is not None
    save_file({"latents": statistics.normalise(plain).to(dtype)}, tmp_path / "pipeline.safetensors")
    save_file({"latents": plain.to(dtype)}, tmp_path / "plain.safetensors")
    decode = partial(handheld.decode, bundle)
    ours = decode(tmp_path / "plain.safetensors", tmp_path / "plain.mp4")
    theirs = decode(tmp_path / "pipeline.safetensors", tmp_path / "theirs.mp4", normalised=True)
    assert (ours.frames, theirs.frames) == (3, 3)
    from handheld.latents_file import read_latents

    found = read_latents(tmp_path / "pipeline.safetensors")
    back = found.for_decoder(statistics, takes_normalised=False, normalised=True)
    assert (back - plain).abs().max() < {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    with pytest.raises(ModelError, match="has no latent statistics"):
        found.for_decoder(None, takes_normalised=False, normalised=True)


def test_an_image_decodes_to_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    example = torch.randn(1, CHANNELS, 6, 8)
    bundle = handheld.export(Doubling(), tmp_path / "b", targets=["onnx"], example=example)
    save_file({"latents": example.repeat(2, 1, 1, 1)}, tmp_path / "two.safetensors")
    done = handheld.decode(bundle, tmp_path / "two.safetensors", tmp_path / "picture.png")
    assert [path.name for path in done.paths] == ["picture-0.png", "picture-1.png"]
    pixels = np.asarray(Image.open(done.paths[0]))
    wanted = load_file(bundle.path / "golden.safetensors")["output.frames"][0].permute(1, 2, 0)
    assert np.abs(pixels / 127.5 - 1 - wanted.numpy()).max() < 1 / 127.5 + 1e-6
    assert tuple(done.size) == (12, 16)


class DeclaredImages(Decoder):
    """An image decoder that declares its layers."""

    spec = LatentSpec(4, 4, 1, image=True)

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(4, 48, 1)

    def layers(self) -> dict[str, Layer]:
        return {"out": Framewise((self.out,))}

    def forward(self, latents: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.out(latents), 4)


def test_an_image_decoder_is_not_streamed_whatever_layers_it_declares(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="one image, NCHW: there are no frames to stream"):
        handheld.export(DeclaredImages(), tmp_path / "bundle", targets=["onnx"], height=32, width=40, stream=True)
