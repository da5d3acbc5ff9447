"""A tiny decoder lowered for real, bundles over it, and a validator for the schemas."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handheld.runtime.bundle import Bundle, BundleWriter, Method, TensorSpec, Tolerance, read_bundle

SCHEMAS = Path(__file__).resolve().parents[2] / "runtime" / "schema"

INPUTS = [TensorSpec("latents", (1, 4, 2, 8, 8), description="posterior mean")]
OUTPUTS = [TensorSpec("frames", (1, 3, 2, 16, 16), range=(-1.0, 1.0))]

# name -> target, runtime, path in the bundle
ARTIFACTS = {
    "onnx": ("onnx", "onnxruntime", "onnx/decoder.onnx"),
    "android": ("android", "executorch", "android/decoder.pte"),
    "ios": ("ios", "coreml", "ios/decoder.mlpackage"),
}


@dataclass(frozen=True)
class Lowered:
    """Model files by artefact name, and what the eager model makes of its input."""

    paths: dict[str, Path]
    latents: np.ndarray
    frames: np.ndarray


@pytest.fixture(scope="session")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """A convolution and a pixel shuffle per frame: ONNX, XNNPACK, and a folder shaped as a Core ML package."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from torch import nn

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 12, 3, padding=1)

        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            n, c, t, h, w = latents.shape
            rows = latents.permute(0, 2, 1, 3, 4).reshape(n * t, c, h, w)
            rows = torch.tanh(nn.functional.pixel_shuffle(self.conv(rows), 2))
            return rows.reshape(n, t, 3, 2 * h, 2 * w).permute(0, 2, 1, 3, 4).contiguous()

    folder = tmp_path_factory.mktemp("lowered")
    paths = {name: folder / Path(path).name for name, (_, _, path) in ARTIFACTS.items()}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        decoder = Decoder().eval()
        latents = torch.randn(INPUTS[0].shape)
        frames = decoder(latents)
    exported = torch.export.export(decoder, (latents,))
    torch.onnx.export(
        exported,
        f=paths["onnx"],
        dynamo=True,
        input_names=["latents"],
        output_names=["frames"],
        external_data=False,
        verbose=False,
    )
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    paths["android"].write_bytes(program.buffer)
    (paths["ios"] / "Data" / "weights").mkdir(parents=True)
    (paths["ios"] / "Manifest.json").write_text("{}")
    (paths["ios"] / "Data" / "weights" / "weight.bin").write_bytes(b"w" * 100)
    return Lowered(paths, latents.numpy(), frames.numpy())


@pytest.fixture
def fill() -> Callable[..., None]:
    """`fill(writer, models, latents, frames)` puts into a writer all that a bundle needs.

    `models` maps artefact names to their file, their folder or their bytes.
    """

    def fill(
        writer: BundleWriter,
        models: dict[str, Path | bytes],
        latents: np.ndarray,
        frames: np.ndarray,
        **overrides: Any,
    ) -> None:
        for name, model in models.items():
            target, runtime, path = ARTIFACTS[name]
            place = writer.artifact_dir(path.split("/")[0]) / Path(path).name
            if isinstance(model, bytes):
                place.write_bytes(model)
            else:
                (shutil.copytree if model.is_dir() else shutil.copy)(model, place)
            entry = {
                "name": name,
                "target": target,
                "runtime": runtime,
                "path": path,
                "precision": "fp32",
                "tolerance": Tolerance(1e-4, "fp32 against fp32"),
                "methods": [Method("forward", (INPUTS[0].shape,), (OUTPUTS[0].shape,))],
            }
            writer.add_artifact(**entry | overrides)
        writer.set_golden({"latents": latents}, {"frames": frames})
        writer.describe(
            name="tiny",
            provenance={"preset": "tiny", "seed": 0, "teacher": {"name": "none"}},
            versions={"torch": "2"},
            inputs=INPUTS,
            outputs=OUTPUTS,
        )

    return fill


@pytest.fixture
def make_bundle(tmp_path: Path, lowered: Lowered, fill: Callable[..., None]) -> Callable[..., Bundle]:
    """`make_bundle("onnx", ..., name="bundle")` writes a bundle of those artefacts, really lowered."""

    def make(
        *names: str, name: str = "bundle", models: dict[str, Path | bytes] | None = None, **overrides
    ) -> Bundle:
        models = models or {n: lowered.paths[n] for n in names}
        with BundleWriter(tmp_path / name) as writer:
            fill(writer, models, lowered.latents, lowered.frames, **overrides)
        return writer.bundle

    return make


@pytest.fixture
def plain_bundle(tmp_path: Path, fill: Callable[..., None]) -> Bundle:
    """A bundle whose models are mere bytes and a folder: for what never runs them."""
    package = tmp_path / "source.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Manifest.json").write_text("{}")
    (package / "Data" / "weight.bin").write_bytes(b"weights")
    generator = np.random.default_rng(0)
    latents = generator.standard_normal(INPUTS[0].shape, dtype=np.float32)
    frames = generator.uniform(-1, 1, OUTPUTS[0].shape).astype(np.float32)
    with BundleWriter(tmp_path / "plain") as writer:
        fill(writer, {"onnx": b"onnx model", "ios": package}, latents, frames)
    return writer.bundle


@pytest.fixture
def edit_manifest() -> Callable[..., Bundle]:
    """`edit_manifest(bundle, edit)` applies `edit(tree)` to the JSON, puts right the hash of every artefact that
    is a file, and reads the bundle again."""

    def apply(bundle: Bundle, edit: Callable[[dict[str, Any]], Any] = lambda tree: None) -> Bundle:
        path = bundle.path / "manifest.json"
        tree = json.loads(path.read_text())
        for artifact in tree["artifacts"]:
            file = bundle.path / artifact["path"]
            if file.is_file():
                artifact["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
                artifact["size_bytes"] = file.stat().st_size
        edit(tree)
        path.write_text(json.dumps(tree))
        return read_bundle(bundle.path)

    return apply


@pytest.fixture(scope="session")
def schema_faults() -> Callable[[Any, str], list[str]]:
    """`schema_faults(value, "manifest")`: where a JSON value breaks a schema. Knows the keywords that ours use,
    and refuses any other, so that a schema cannot say what nobody checks."""
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "null": type(None),
        "number": (int, float),
        "integer": int,
    }
    silent = {"$schema", "$id", "$defs", "title", "description"}

    def is_type(value: Any, name: str) -> bool:
        return isinstance(value, types[name]) and not (isinstance(value, bool) and name in ("number", "integer"))

    def check(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str) -> list[str]:
        faults = []
        for keyword, wanted in schema.items():
            bad = False
            if keyword == "$ref":
                faults += check(value, root["$defs"][wanted.rsplit("/", 1)[1]], root, where)
            elif keyword == "anyOf":
                bad = all(check(value, option, root, where) for option in wanted)
            elif keyword == "type":
                bad = not any(is_type(value, t) for t in ([wanted] if isinstance(wanted, str) else wanted))
            elif keyword == "const":
                bad = value != wanted
            elif keyword == "enum":
                bad = value not in wanted
            elif keyword == "required":
                bad = isinstance(value, dict) and not set(wanted) <= set(value)
            elif keyword == "properties":
                for key in set(wanted) & set(value if isinstance(value, dict) else ()):
                    faults += check(value[key], wanted[key], root, f"{where}.{key}")
            elif keyword == "additionalProperties":
                extra = set(value) - set(schema.get("properties", ())) if isinstance(value, dict) else ()
                for key in extra:
                    faults += check(value[key], wanted, root, f"{where}.{key}") if wanted else [f"{where}.{key}"]
            elif keyword == "items":
                for index, item in enumerate(value if isinstance(value, list) else ()):
                    faults += check(item, wanted, root, f"{where}[{index}]")
            elif keyword in ("minItems", "maxItems", "minLength"):
                if isinstance(value, list if "Items" in keyword else str):
                    bad = len(value) > wanted if keyword == "maxItems" else len(value) < wanted
            elif keyword == "minimum":
                bad = is_type(value, "number") and value < wanted
            elif keyword == "maximum":
                bad = is_type(value, "number") and value > wanted
            elif keyword == "pattern":
                bad = isinstance(value, str) and not re.search(wanted, value)
            else:
                assert keyword in silent, f"the schema uses {keyword}, which nothing checks"
            if bad:
                faults.append(f"{where}: {keyword} {wanted}: {value!r}")
        return faults

    def faults_of(value: Any, name: str) -> list[str]:
        schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
        return check(value, schema, schema, "")

    return faults_of
