"""Core AI: what its converter refuses, what is really compressed, and bundles through the command's own path."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handheld.convert import TARGETS, export, resolve_targets
from handheld.convert.coreai.limits import limits
from handheld.convert.coreai.products import protect_products
from handheld.convert.errors import ExportError
from handheld.convert.graph.capture import capture
from handheld.convert.quiet import quiet
from handheld.convert.rewrites import safe_rms_norm
from handheld.convert.rewrites.cases import Lambda
from handheld.convert.streaming import default_cuts
from handheld.convert.target import Job, Lowered, Target
from handheld.models import PRESETS, TurboVAEDecoder
from handheld.runtime.bundle import Bundle
from handheld.runtime.manifest import Method, TensorSpec
from handheld.runtime.session.coreai import CoreAISession
from handheld.runtime.verify import verify

pytest.importorskip("coreai", reason="needs coreai-core")
pytest.importorskip("coreai_torch", reason="needs coreai-torch")

IOS27 = TARGETS["ios27"]
CLIP, FRAMES = (1, 8, 4, 6, 6), (3, 8, 6, 6)
ROWS = torch.tensor([0, 1, 1])

# Name -> what makes the module (a function of one tensor stands for itself), shape, whether it is refused.
# Each refused one has its nearest neighbours that are taken beside it.
ONE_OP: dict[str, tuple[nn.Module | Callable[[Tensor], Tensor], tuple[int, ...], bool]] = {
    "transposed conv3d": (nn.ConvTranspose3d(8, 8, 2, stride=2), CLIP, True),
    "transposed conv2d": (nn.ConvTranspose2d(8, 8, 2, stride=2), FRAMES, False),
    "conv3d": (nn.Conv3d(8, 8, 3, padding=1, groups=2), CLIP, False),
    "elu": (F.elu, FRAMES, True),
    "selu": (F.selu, FRAMES, True),
    "celu": (F.celu, FRAMES, False),
    "gelu": (F.gelu, FRAMES, False),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), CLIP, True),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), FRAMES, False),
    "variance": (lambda x: x.var(1), FRAMES, True),
    "deviation": (lambda x: x.std(1, correction=0), FRAMES, True),
    "variance and mean": (lambda x: torch.var_mean(x, 1)[0], FRAMES, True),
    "mean": (lambda x: x.mean(1), FRAMES, False),
    "group_norm": (nn.GroupNorm(2, 8), CLIP, False),
    "grid_sample": (lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False), FRAMES, True),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), FRAMES, False),
    "nearest, clip": (lambda x: F.interpolate(x, scale_factor=2.0), CLIP, False),
    "as_strided": (lambda x: x.as_strided((2, 2), (1, 1)), FRAMES, True),
    "windows": (lambda x: x.unfold(2, 2, 1), FRAMES, True),
    "image to columns": (lambda x: F.unfold(x, 3), FRAMES, False),
    "columns to image": (lambda x: F.fold(x.flatten(2)[:, :, :9], 6, 2, stride=2, padding=0), (3, 8, 3, 3), True),
    "index_add": (lambda x: x.index_add(0, ROWS, x), FRAMES, True),
    "index_put that adds": (lambda x: x.index_put((ROWS,), x, accumulate=True), FRAMES, True),
    "index_put": (lambda x: x.index_put((ROWS,), x), FRAMES, False),
    "scatter_add": (lambda x: x.scatter_add(0, torch.zeros(x.shape, dtype=torch.long), x), FRAMES, True),
    "distances": (lambda x: torch.cdist(x, x), FRAMES, True),
    "fourier": (lambda x: torch.fft.rfft(x).real, FRAMES, True),
    "rank 8": (lambda x: x.reshape(1, 2, 2, 2, 2, 2, 3, 12).transpose(1, 6), CLIP, False),
}


def module(name: str) -> nn.Module:
    made = ONE_OP[name][0]
    return (made if isinstance(made, nn.Module) else Lambda(made)).eval()


def convert(model: nn.Module, x: Tensor) -> None:
    import coreai.authoring  # noqa: F401  before coreai_torch
    from coreai_torch import TorchConverter, get_decomp_table

    with quiet(), torch.no_grad():
        program = torch.export.export(model, (x,)).run_decompositions(get_decomp_table())
        converter = TorchConverter()
        converter.add_exported_program(program, input_names=["x"], output_names=["y"], entrypoint_name="main")
        converter.to_coreai()


@pytest.mark.parametrize("name", list(ONE_OP))
def test_what_is_stated_to_be_refused_is_what_the_converter_refuses(name: str) -> None:
    _, shape, refused = ONE_OP[name]
    model, x = module(name), torch.randn(shape)
    found = {
        limit.severity
        for node in capture(model, (x,)).graph.nodes
        if node.op == "call_function" and (limit := limits(node, torch.float32))
    }
    assert ("refused" in found) == refused
    if refused:
        with pytest.raises(ValueError, match="supported"):
            convert(model, x)
    else:
        convert(model, x)


def decoder() -> TurboVAEDecoder:
    torch.manual_seed(0)
    config = replace(
        PRESETS["tiny"], latent_channels=4, decoder_block_out_channels=(64, 64), decoder_layers_per_block=(1, 1, 1)
    )
    return TurboVAEDecoder(config).eval()


def in_core_ai(model: nn.Module, x: Tensor, precision: str, folder: Path) -> tuple[Tensor, Lowered]:
    """What Core AI makes of x, lowered by the target; and what lowering told."""
    path = folder / IOS27.filename
    lowered = IOS27.lower(Job(capture(model, (x,)), (x,), precision, path))
    shape = tuple(model(x).shape)
    artifact = SimpleNamespace(
        name="model",
        stream=None,
        methods=(Method(IOS27.method, (tuple(x.shape),), (shape,)),),
        input_dtype=lowered.input_dtype,
        output_dtype=lowered.output_dtype,
        dynamic=(),
    )
    specs = (TensorSpec("latents", tuple(x.shape)),), (TensorSpec("frames", shape),)
    with CoreAISession(path, artifact, *specs) as session:
        return torch.from_numpy(session.run({"latents": x.numpy()})["frames"]), lowered


class Product(nn.Module):
    """A constant times a tensor, reshaped to 6 rows."""

    def __init__(self, batched: bool) -> None:
        super().__init__()
        self.batched = batched
        self.register_buffer("left", torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        right = x.reshape(6, -1)
        return self.left[None] @ right[None] if self.batched else self.left @ right


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(("shape", "misread"), [((6, 3, 6, 5), 1), ((5, 6, 6), 1), ((6, 3, 5, 6), 0), ((6, 30), 0)])
def test_products_that_core_ai_misreads_are_written_so_that_it_does_not(
    shape: tuple[int, ...], misread: int, batched: bool, tmp_path: Path
) -> None:
    model, x = Product(batched), torch.randn(shape)
    program = torch.export.export(model, (x,)).run_decompositions()
    assert protect_products(program) == misread
    torch.testing.assert_close(program.module()(x), model(x))
    found, _ = in_core_ai(model, x, "fp32", tmp_path)
    torch.testing.assert_close(found, model(x), atol=1e-5, rtol=1e-5)


def made(tmp_path: Path, precision: str | None = None, target: Target = IOS27, **more: Any) -> Bundle:
    """A bundle of a small decoder, 2 latent frames of 2x2."""
    model = decoder()
    latents = torch.randn(1, 4, 2, 2, 2, generator=torch.manual_seed(1))
    return export(
        model,
        latents,
        tmp_path / "bundle",
        targets=[target],
        precision=precision,
        name="small",
        provenance={"weights": "random", "seed": 0},
        **more,
    )


# k-means of many values takes seconds.
PRECISIONS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in ("pal8", "pal6") else []) for name in IOS27.precisions
]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_verifies_in_core_ai_and_compresses_what_it_says(precision: str, tmp_path: Path) -> None:
    bundle = made(tmp_path, precision)
    (verdict,) = verify(bundle)
    assert (verdict.status, verdict.reason) == ("pass", "")
    assert "Core AI" in verdict.runtime_version
    weights = bundle.artifacts[0].settings["weights"]
    stored = {"int8": "Int8", "int4": "Int4", "pal8": "UInt8", "pal6": "UInt6", "pal4": "UInt4", "fp32": "Float32"}
    assert weights["large"] >= 5
    assert weights["compressed"] == (0 if precision.startswith("fp") else weights["large"])
    assert max(weights["stored"], key=weights["stored"].get) == stored.get(precision, "Float16")


def test_two_shapes_are_functions_of_one_asset_over_one_copy_of_the_weights(tmp_path: Path) -> None:
    more = torch.randn(1, 4, 2, 3, 3, generator=torch.manual_seed(2))
    (tmp_path / "one").mkdir()
    one = made(tmp_path / "one", "int8").artifacts[0]
    bundle = made(tmp_path, "int8", more=[more])
    (artifact,) = bundle.artifacts
    assert [method.name for method in artifact.methods] == ["main", "shape_24x24x3"]
    assert artifact.size_bytes < 1.3 * one.size_bytes
    assert artifact.settings["weights"]["compressed"] == 2 * one.settings["weights"]["compressed"]
    assert verify(bundle)[0].status == "pass"


def test_a_streamed_bundle_decodes_clips_of_both_lengths(tmp_path: Path) -> None:
    model = decoder()
    clips = [torch.randn(1, 4, frames, 1, 2, generator=torch.manual_seed(frames)) for frames in (3, 1)]
    bundle = export(
        model,
        clips[0],
        tmp_path / "bundle",
        targets=[IOS27],
        more=clips[1:],
        stream=default_cuts(model, 3),
        name="small",
        provenance={},
    )
    (artifact,) = bundle.artifacts
    assert artifact.stream is not None
    assert artifact.input_dtype == "float16"  # its states take half as much
    (verdict,) = verify(bundle)
    assert (verdict.status, verdict.reason) == ("pass", "")


def test_the_asset_itself_says_where_its_weights_come_from(tmp_path: Path) -> None:
    bundle = made(tmp_path)
    (artifact,) = bundle.artifacts
    metadata = json.loads((bundle.locate(artifact.path) / "metadata.json").read_text())
    own = metadata["creatorDefinedMetadata"]["handheld"]
    assert (own["weights"], own["seed"]) == ("random", 0)
    assert "latents to frames, fp16" in metadata["description"]
    assert artifact.settings["operations"]["conv2d"] > 10
    assert {"coreai-core", "coreai-torch", "coreai-opt"} <= set(bundle.manifest.versions)


def as_captured(precision: str) -> Target:
    """The target, with none of the rewrites in that precision but the one that fp16's range needs."""
    kept = tuple(step for step in IOS27.precision(precision).rewrites if step is safe_rms_norm.REWRITE)
    return replace(IOS27, precisions={precision: replace(IOS27.precision(precision), rewrites=kept)})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_as_captured_verifies_too(precision: str, tmp_path: Path) -> None:
    bundle = made(tmp_path, precision, target=as_captured(precision))
    assert bundle.artifacts[0].settings["operations"]["conv3d"] > 5
    assert verify(bundle)[0].status == "pass"


def test_weights_that_are_not_compressed_are_an_error_and_not_a_silence(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Of \d+ large weights \d were compressed to int8, .*2D convol"):
        made(tmp_path, "int8", target=as_captured("int8"))


def test_a_palette_is_exact_for_large_and_for_small_weights(tmp_path: Path) -> None:
    """Rounded to four decimals in fp16, as coreai-opt's faster mode does, both layers would be lost."""
    layers = [nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(2)]
    with torch.no_grad():
        for layer, scale in zip(layers, (20.0, 1e-4)):
            layer.weight.copy_(scale * torch.randint(-4, 5, layer.weight.shape))
    model, x = nn.Sequential(*layers).eval(), torch.randn(1, 64, 4, 4) / 64
    with torch.no_grad():
        wanted = model(x)
        found, lowered = in_core_ai(model, x, "pal8", tmp_path)
    assert lowered.settings["weights"]["compressed"] == 2
    # Nine values fit in the table, so that only fp16's rounding is left.
    assert (found - wanted).abs().max() < 5e-3 * wanted.abs().max()


def test_a_target_without_its_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"ios27 needs coreai, coreai_torch, coreai_opt: .*handheld\[coreai\]"):
        resolve_targets(["ios27"])
