"""Several shapes in one artefact: shared weights, every shape verified, and who refuses."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from handheld.convert import TARGETS, ExportError, export, resolve_targets
from handheld.convert.coreml.evaluator import verify_coreml
from handheld.models import TurboVAEDecoder
from handheld.runtime.bundle import Bundle, read_bundle
from handheld.runtime.errors import BundleError, RuntimeFailure
from handheld.runtime.session import open_session
from handheld.runtime.verify import verify

from .conftest import small_decoder

SIZES = (16, 24)
SECOND = "shape_24x24x3"


@functools.cache
def small() -> tuple[TurboVAEDecoder, tuple[torch.Tensor, ...]]:
    """The decoder, and latents of 3 frames in each of the sizes."""
    model = small_decoder()
    shapes = [model.spec.latent_shape(frames=3, height=size, width=size) for size in SIZES]
    return model, tuple(torch.randn(shape) for shape in shapes)


def lower(out: Path, *targets: str, examples: tuple[torch.Tensor, ...] | None = None) -> Bundle:
    model, both = small()
    first, *more = examples or both
    return export(model, first, out, targets=resolve_targets(targets), more=more, name="test", provenance={})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """Bundles of both shapes for one target, each lowered once for the whole module."""
    return functools.cache(lambda target: lower(tmp_path_factory.mktemp(target) / "bundle", target))


@pytest.mark.parametrize("target", ["android", "onnx"])
def test_each_shape_of_an_artefact_computes_what_the_decoder_does(target: str, bundles: Callable) -> None:
    model, examples = small()
    with open_session(bundles(target), target) as session:
        for latents in (*examples, examples[0]):
            frames = session.run({"latents": latents.numpy()})["frames"]
            with torch.no_grad():
                np.testing.assert_allclose(frames, model(latents).numpy(), atol=1e-4)


def test_shapes_that_the_artefact_lacks_are_refused_with_those_that_it_has(bundles: Callable) -> None:
    with open_session(bundles("android"), "android") as session, pytest.raises(RuntimeFailure) as caught:
        session.run({"latents": np.zeros((1, 48, 2, 4, 4), np.float32)})
    message = str(caught.value)
    assert '"latents" is float32 (1, 48, 2, 4, 4)' in message
    assert "float32 (1, 48, 2, 2, 2) NCTHW or " in message
    assert "float32 (1, 48, 2, 3, 3) NCTHW." in message


@pytest.mark.parametrize(
    "target",
    [
        "android",
        "onnx",
        pytest.param("android-vulkan", marks=pytest.mark.slow),
        pytest.param("ios-executorch", marks=pytest.mark.slow),
        "ios18",
    ],
)
def test_a_second_shape_costs_little_beside_the_shared_weights(
    target: str, bundles: Callable, tmp_path: Path
) -> None:
    alone = lower(tmp_path / "alone", target, examples=small()[1][:1]).artifacts[0]
    both = bundles(target).artifacts[0]
    assert both.size_bytes < 1.1 * alone.size_bytes
    assert [method.name for method in both.methods] == [alone.methods[0].name, SECOND]
    assert alone.methods == both.methods[:1]
    assert "other_shapes" not in alone.settings
    assert both.settings["other_shapes"][SECOND]["rewritten"]["max_rank"] == 5


@pytest.mark.parametrize("target", ["ios18", pytest.param("ios-executorch", marks=pytest.mark.slow)])
def test_the_reference_evaluator_verifies_each_function(target: str, bundles: Callable) -> None:
    bundle = bundles(target)
    verdict = verify_coreml(bundle, bundle.artifacts[0])
    assert (verdict.status, verdict.reason) == ("pass", "")


@pytest.mark.parametrize("target", ["android", "onnx", "ios18"])
def test_a_shape_that_computes_something_else_fails_verification(
    target: str, bundles: Callable, tmp_path: Path
) -> None:
    wrong = with_wrong_second_output(bundles(target), tmp_path / "wrong")
    (verdict,) = verify(wrong) if target != "ios18" else [verify_coreml(wrong, wrong.artifacts[0])]
    assert verdict.status == "fail"
    assert "The largest error, " in verdict.reason
    if target == "ios18":
        assert verdict.reason.startswith("In the shape (1, 48, 2, 3, 3): ")


def with_wrong_second_output(bundle: Bundle, folder: Path) -> Bundle:
    """A copy whose golden output of the second shape is not what the model computes."""
    import shutil

    from safetensors.numpy import load_file, save_file

    from handheld.runtime import files

    shutil.copytree(bundle.path, folder)
    golden = folder / "golden.safetensors"
    tensors = load_file(golden)
    tensors[f"output.frames.{SECOND}"] = tensors[f"output.frames.{SECOND}"] + 0.5
    save_file(tensors, golden)
    manifest = folder / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["golden"] |= {"sha256": files.sha256_of(golden), "size_bytes": files.size_of(golden)}
    manifest.write_text(json.dumps(tree))
    return read_bundle(folder)


def test_manifest_and_golden_tensors_of_several_shapes_read_back(bundles: Callable) -> None:
    bundle = read_bundle(bundles("android").path)
    assert bundle.manifest == bundles("android").manifest
    assert bundle.shapes == (None, SECOND)
    for shape, latents in zip(bundle.shapes, small()[1]):
        inputs, outputs = bundle.golden(shape)
        np.testing.assert_array_equal(inputs["latents"], latents.numpy())
        assert outputs["frames"].shape[-1] == 8 * latents.shape[-1]
    with pytest.raises(BundleError, match=f"no shape 'forward'; beside the first, None, it has {SECOND}"):
        bundle.golden("forward")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda ms: ms[0].update(inputs=[[1, 48, 2, 9, 9]]),
            "methods[0]: its shapes are not those of the",
        ),
        (lambda ms: ms[1].update(name="forward"), 'methods: name "forward" is used twice'),
        (lambda ms: ms[1].update(inputs=ms[0]["inputs"]), "methods: inputs"),
        (lambda ms: ms[1].update(outputs=[[1, 3]]), "methods[1]: shapes of other tensors"),
        (lambda ms: ms[1].update(name="a.b"), "methods[1].name: wanted letters, digits and underscores"),
        (lambda ms: ms.clear(), "methods: wanted a list of at least 1 items"),
    ],
)
def test_methods_that_contradict_the_manifest_are_refused(
    bundles: Callable, tmp_path: Path, spoil: Callable, says: str
) -> None:
    tree = json.loads((bundles("android").path / "manifest.json").read_text())
    spoil(tree["artifacts"][0]["methods"])
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(BundleError) as caught:
        read_bundle(tmp_path)
    assert says in str(caught.value)


def test_artefacts_of_one_bundle_have_the_same_shapes(bundles: Callable, tmp_path: Path) -> None:
    tree = json.loads((bundles("android").path / "manifest.json").read_text())
    (artifact,) = tree["artifacts"]
    other = artifact | {"name": "other", "path": "other/decoder.pte", "methods": artifact["methods"][:1]}
    tree["artifacts"].append(other)
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(BundleError, match=r"artifacts\[1\]\.methods: after the first, not the same"):
        read_bundle(tmp_path)


def test_a_golden_file_without_the_second_shape_is_refused(bundles: Callable, tmp_path: Path) -> None:
    tree = json.loads((bundles("android").path / "manifest.json").read_text())
    tree["artifacts"][0]["methods"][1]["name"] = "renamed"
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    (tmp_path / "golden.safetensors").write_bytes((bundles("android").path / "golden.safetensors").read_bytes())
    with pytest.raises(BundleError, match=rf"input\.latents\.{SECOND} is in no spec.*renamed is missing"):
        read_bundle(tmp_path).golden()


@pytest.mark.parametrize("target", [name for name in TARGETS if not TARGETS[name].several_shapes])
def test_targets_of_one_shape_refuse_several_and_name_those_that_take_them(target: str, tmp_path: Path) -> None:
    assert target in ("ios", "ios16")
    with pytest.raises(
        ExportError, match=rf"{target} holds one shape.* or use ios18, ios27, ios-executorch, android"
    ):
        lower(tmp_path / "bundle", "android", target)
    assert not (tmp_path / "bundle").exists()


def test_the_same_shape_twice_is_refused(tmp_path: Path) -> None:
    _, (latents, _) = small()
    with pytest.raises(ExportError, match=r"\(1, 48, 2, 2, 2\) are given twice"):
        lower(tmp_path / "bundle", "android", examples=(latents, latents.clone()))
