"""Reading and writing bundles: the folders in which lowered models travel.

BUNDLE/
  manifest.json
  golden.safetensors        `input.<name>` and `output.<name>`, fp32, from the eager model; for each shape but the
                            first `input.<name>.<method>` and `output.<name>.<method>`
  onnx/decoder/             one folder per artefact; an artefact is a file or a folder
  android/decoder.pte
  ios/decoder.mlpackage/
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from handheld.files import StagedFolder, is_full

from . import files, parsing
from .errors import BundleError
from .manifest import (
    Artifact,
    Golden,
    Manifest,
    Method,
    Refusal,
    RewriteRecord,
    TensorSpec,
    Tolerance,
    parse_manifest,
)
from .parity import blocks
from .stream_plan import StreamPlan

__all__ = [
    "Artifact",
    "Bundle",
    "BundleWriter",
    "Golden",
    "Manifest",
    "Method",
    "Refusal",
    "RewriteRecord",
    "TensorSpec",
    "Tolerance",
    "read_bundle",
]

MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.safetensors"

# What safetensors calls numpy's types.
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BOOL": "?",
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read: where it is and what its manifest says. Nothing is hashed until it is asked for."""

    path: Path
    manifest: Manifest

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        return self.manifest.artifacts

    def artifact(self, name: str) -> Artifact:
        """The artefact of that name. Raises BundleError with the names that there are."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        names = ", ".join(artifact.name for artifact in self.artifacts)
        raise BundleError(f'{self.path} has no artefact "{name}"; it has: {names}.')

    def locate(self, relative: str) -> Path:
        """The path of a file or folder of the bundle. Raises BundleError where a symbolic link leaves it."""
        path = self.path / relative
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(
                f"{self.path}: {relative} leads out of the bundle, to {path.resolve()}. A bundle holds its own "
                "files; do not use this one unless you know who made it."
            )
        return path

    def check(self, artifact: Artifact) -> None:
        """Compare an artefact's size and SHA-256 with the manifest. Raises BundleError with both values."""
        self._check(artifact.path, artifact.size_bytes, artifact.sha256)

    def check_golden(self) -> None:
        """The same for the golden file."""
        golden = self.manifest.golden
        self._check(golden.path, golden.size_bytes, golden.sha256)

    @property
    def shapes(self) -> tuple[str | None, ...]:
        """The shapes of every artefact, in the order of its methods, as `golden` takes them."""
        return (None, *(method.name for method in self.artifacts[0].methods[1:]))

    def golden(self, method: str | None = None) -> tuple[Arrays, Arrays]:
        """Golden (inputs, outputs) by name, in the dtypes of the specs; the file is hashed first.

        The arrays map the file: a clip of any length takes no more memory than what is read of it.

        Args:
            method: one of `shapes`; None is the first, the shape of the specs.

        Raises BundleError for a file that was altered or does not hold what the manifest says, and a method that
        there is not.
        """
        from safetensors import SafetensorError

        if method not in self.shapes:
            names = ", ".join(map(str, self.shapes[1:])) or "no other"
            raise BundleError(f"{self.path} has no shape {method!r}; beside the first, None, it has {names}.")
        self.check_golden()
        source = self.locate(self.manifest.golden.path)
        try:
            tensors = _mapped(source)
        except (SafetensorError, ValueError) as error:
            raise BundleError(f"{self.path}: {self.manifest.golden.path} is not safetensors: {error}.") from error
        if faults := _golden_faults(self.manifest, tensors):
            raise BundleError(f"{self.path}: {self.manifest.golden.path}: " + "; ".join(faults) + ".")
        return (
            {spec.name: tensors[_golden_name("input", spec, method)] for spec in self.manifest.inputs},
            {spec.name: tensors[_golden_name("output", spec, method)] for spec in self.manifest.outputs},
        )

    def _check(self, relative: str, size_bytes: int, sha256: str) -> None:
        path = self.locate(relative)
        if not path.exists():
            raise BundleError(f"{self.path}: {relative} is missing. Fetch or export the bundle again.")
        found_bytes = files.size_of(path)
        if found_bytes != size_bytes:
            word = "is truncated" if found_bytes < size_bytes else "has grown"
            raise BundleError(
                f"{self.path}: {relative} {word}: {found_bytes} bytes, the manifest says {size_bytes}. "
                "Fetch or export the bundle again."
            )
        found = files.sha256_of(path)
        if found != sha256:
            raise BundleError(
                f"{self.path}: {relative} was altered: SHA-256 {found}, the manifest says {sha256}. "
                "Fetch or export the bundle again."
            )


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle's manifest. Hashes nothing: `Bundle.check` and `open_session` do.

    Raises BundleError for a folder that is not a bundle, a manifest of another version or with faults, and a
    path that leads out of the bundle.
    """
    path = Path(path)
    source = path / MANIFEST_NAME
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{source} is not UTF-8 text. Fetch or export the bundle again.") from error
    except OSError as error:
        raise BundleError(
            f"{path} is not a bundle: {source} cannot be read ({error.strerror}). Give the folder that "
            "`handheld export` wrote."
        ) from error
    bundle = Bundle(path, parse_manifest(text, str(source)))
    for relative in (bundle.manifest.golden.path, *(artifact.path for artifact in bundle.artifacts)):
        bundle.locate(relative)
    return bundle


class BundleWriter:
    """Writes a bundle so that nothing that looks whole exists before it is whole.

    A context manager. Files are made in a hidden folder beside the target, `.NAME.partial-PID-RANDOM`. Leaving
    the `with` block hashes them, writes the manifest last, syncs all to disk and renames the folder into place;
    leaving it with an exception removes the folder. What killed processes left is removed by the next writer
    of the same name.

        with BundleWriter(path) as writer:
            folder = writer.artifact_dir("onnx")
            ...  # write folder / "decoder.onnx"
            writer.add_artifact(name="onnx", target="onnx", path="onnx/decoder.onnx", ...)
            writer.set_golden({"latents": ...}, {"frames": ...})
            writer.describe(name="ltx", provenance={...}, versions={...}, inputs=[...], outputs=[...])
        writer.bundle

    Args:
        path: the bundle's folder; missing parent folders are made.
        overwrite: replace an existing bundle, at the very end. Nothing but a bundle or an empty folder is
            ever replaced.
        proof: called with the whole bundle, still in the hidden folder, before it gets its name. What it raises
            leaves nothing behind.

    Raises BundleError, before any work, for a target that exists or a parent that cannot be written; at the
    end for a bundle that is incomplete, and for a full disk.
    """

    bundle: Bundle

    def __init__(
        self,
        path: str | os.PathLike[str],
        overwrite: bool = False,
        proof: Callable[[Bundle], None] = lambda bundle: None,
    ) -> None:
        self._proof = proof
        self._folder = StagedFolder(
            path, kind="bundle", is_kind=_may_be_replaced, overwrite=overwrite, error=BundleError
        )
        self._artifacts: list[dict[str, Any]] = []
        self._golden: dict[str | None, Arrays] = {}
        self._description: dict[str, Any] | None = None

    def artifact_dir(self, name: str) -> Path:
        """Make the folder `name` of the bundle and return where to write its files."""
        if not re.fullmatch(r"[\w-]+", name):
            raise BundleError(f'"{name}" cannot name a folder of a bundle: use letters, digits, _ and -.')
        folder = self._partial / name
        folder.mkdir(exist_ok=True)
        return folder

    def add_artifact(
        self,
        *,
        name: str,
        target: str,
        runtime: str,
        path: str,
        precision: str,
        tolerance: Tolerance,
        methods: Sequence[Method],
        input_dtype: str = "float32",
        output_dtype: str = "float32",
        settings: Mapping[str, Any] | None = None,
        rewrites: Sequence[RewriteRecord] = (),
        delegation: Mapping[str, Any] | None = None,
        lowering_seconds: float | None = None,
        stream: StreamPlan | None = None,
        dynamic: Sequence[str] = (),
    ) -> None:
        """Register an artefact; its files must be complete when the `with` block ends.

        The arguments are the fields of `manifest.Artifact`; `path` is relative to the bundle. Every file in the
        bundle must belong to an artefact, so a model of several files is registered as their folder.
        """
        self._artifacts.append(
            {
                "name": name,
                "target": target,
                "runtime": runtime,
                "path": path,
                "precision": precision,
                "tolerance": tolerance,
                "methods": tuple(methods),
                "input_dtype": input_dtype,
                "output_dtype": output_dtype,
                "settings": dict(settings or {}),
                "rewrites": tuple(rewrites),
                "delegation": None if delegation is None else dict(delegation),
                "lowering_seconds": lowering_seconds,
                "stream": stream,
                "dynamic": tuple(dynamic),
            }
        )

    def set_golden(
        self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], method: str | None = None
    ) -> None:
        """Set one shape's golden tensors, by the names of the specs, in their dtypes, all finite.

        Args:
            method: whose shapes they have; None is the first, the shape of the specs.
        """
        end = "" if method is None else f".{method}"
        self._golden[method] = {
            f"{side}.{name}{end}": np.ascontiguousarray(array)
            for side, arrays in (("input", inputs), ("output", outputs))
            for name, array in arrays.items()
        }

    def describe(
        self,
        *,
        name: str,
        provenance: Mapping[str, Any],
        versions: Mapping[str, str],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        """Set what the manifest says of the bundle as a whole; see `manifest.Manifest`."""
        self._description = {
            "name": name,
            "provenance": dict(provenance),
            "versions": dict(versions),
            "inputs": tuple(inputs),
            "outputs": tuple(outputs),
        }

    def __enter__(self) -> Self:
        self._partial = self._folder.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                if isinstance(error, OSError) and is_full(error):
                    raise self._folder.failure(error) from error
                return
            try:
                manifest = self._finish()
                self._proof(Bundle(self._partial, manifest))
                self._folder.commit()
            except OSError as failure:
                raise self._folder.failure(failure) from failure
            self.bundle = Bundle(self._folder.target, manifest)
        finally:
            self._folder.discard()

    def _finish(self) -> Manifest:
        """Check that all was given, hash, write golden tensors and, last, the manifest."""
        if self._description is None or not self._golden or not self._artifacts:
            raise BundleError(
                "The bundle is not complete: describe(), set_golden() and add_artifact() must each be called "
                "before the writer is left."
            )
        golden = {name: array for arrays in self._golden.values() for name, array in arrays.items()}
        _write_tensors(self._partial / GOLDEN_NAME, golden)
        manifest = Manifest(
            **self._description,
            created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            golden=Golden(path=GOLDEN_NAME, **self._identity(GOLDEN_NAME)),
            artifacts=tuple(Artifact(**entry, **self._identity(entry["path"])) for entry in self._artifacts),
        )
        text = manifest.to_json()
        manifest = parse_manifest(text, "The manifest to be written")
        if faults := _golden_faults(manifest, golden):
            raise BundleError("The golden tensors do not fit the specs: " + "; ".join(faults) + ".")
        self._refuse_strays(manifest)
        (self._partial / MANIFEST_NAME).write_text(text, encoding="utf-8")
        return manifest

    def _identity(self, relative: str) -> dict[str, Any]:
        path = self._partial / relative
        if not path.exists():
            raise BundleError(f"{relative} was registered but not written: write it below artifact_dir().")
        return {"sha256": files.sha256_of(path), "size_bytes": files.size_of(path)}

    def _refuse_strays(self, manifest: Manifest) -> None:
        """No file travels without a hash: an ONNX file's external weights, say."""
        known = [manifest.golden.path, *(artifact.path for artifact in manifest.artifacts)]
        strays = [
            name
            for name, _ in files.files_below(self._partial)
            if not any(name == path or name.startswith(path + "/") for path in known)
        ]
        if strays:
            raise BundleError(
                f"Files that belong to no artefact: {', '.join(strays)}. Register the folder that holds them as "
                "the artefact, or write the model as one file."
            )


def _may_be_replaced(folder: Path) -> bool:
    """Whether a folder is a bundle, or empty."""
    return (folder / MANIFEST_NAME).is_file() or not any(folder.iterdir())


def _mapped(path: Path) -> Arrays:
    """The tensors of a safetensors file, as arrays that map it.

    Raises SafetensorError for what the library does not take, and ValueError for a tensor that is named twice, of
    which the library takes the last one.
    """
    from safetensors import safe_open

    with safe_open(path, "numpy") as checked:
        dtypes = {name: checked.get_slice(name).get_dtype() for name in checked.keys()}  # noqa: SIM118  no mapping
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = parsing.load_json(stream.read(size).decode())
    if unknown := sorted(set(dtypes.values()) - set(_DTYPES)):
        raise ValueError(f"it has {', '.join(unknown)}, which numpy has not")
    tensors = {}
    for name, dtype in dtypes.items():
        shape, (start, _) = tuple(header[name]["shape"]), header[name]["data_offsets"]
        empty = 0 in shape  # which cannot be mapped
        tensors[name] = (
            np.empty(shape, _DTYPES[dtype])
            if empty
            else np.memmap(path, _DTYPES[dtype], "c", offset=8 + size + start, shape=shape)
        )
    return tensors


def _write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file block by block. The library's own writer takes copies of all tensors."""
    codes = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
    header, end = {}, 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            for block in blocks(array):
                stream.write(block.tobytes())


def _golden_name(side: str, spec: TensorSpec, method: str | None) -> str:
    return f"{side}.{spec.name}" if method is None else f"{side}.{spec.name}.{method}"


def _golden_faults(manifest: Manifest, tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Where golden tensors disagree with specs and methods: names, shapes, dtypes, values that are not finite."""
    specs: dict[str, TensorSpec] = {}
    for index, method in enumerate(manifest.artifacts[0].methods):
        which = method.name if index else None
        for side, of, shapes in (
            ("input", manifest.inputs, method.inputs),
            ("output", manifest.outputs, method.outputs),
        ):
            specs |= {_golden_name(side, s, which): replace(s, shape=shape) for s, shape in zip(of, shapes)}
    faults = [f"{name} is in no spec" for name in tensors if name not in specs]
    for name, spec in specs.items():
        array = tensors.get(name)
        if array is None:
            faults.append(f"{name} is missing")
        elif array.shape != spec.shape or array.dtype != spec.dtype:
            faults.append(f"{name} is {array.dtype} {array.shape}, the spec says {spec.dtype} {spec.shape}")
        elif not all(np.isfinite(block).all() for block in blocks(array)):
            faults.append(f"{name} holds NaN or infinity")
    return faults
