"""Writing a flash pack: the folder that the engine runs a model's feed-forward layers from.

PACK/
  manifest.json             shapes, offsets and hashes, for people and tools
  neurons.bin               a hashed header, then each layer's bundles
  resident.safetensors      what stays in memory: the engine's `flash.<layer>.*` tensors and any others
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from handheld.files import StagedFolder, is_full

from .. import files
from ..errors import BundleError, RuntimeFailure
from .layout import Groups, LayerRecord, PackSpec, encode_header, header_bytes, identity_of, manifest
from .quantise import Rows, as_floats, encode_rows, encode_ternary

MANIFEST_NAME = "manifest.json"
NEURONS_NAME = "neurons.bin"
RESIDENT_NAME = "resident.safetensors"

_FLOATS = {"fp32": np.float32, "fp16": np.float16}
_SLAB_BYTES = 32 << 20  # of fp32 weights that are encoded at once
_DTYPES = {"float16": "F16", "float32": "F32", "int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8"}


@dataclass(frozen=True)
class FeedForward:
    """One layer's weights as a checkpoint has them: gate and up (d_ff, d_model), down (d_model, d_ff), biases
    (d_ff,) and (d_model,). Any float dtype, gate and up also as rows that are quantised already; `gate` and the
    biases are there when the spec says so."""

    up: Rows
    down: np.ndarray
    gate: Rows | None = None
    up_bias: np.ndarray | None = None
    down_bias: np.ndarray | None = None


@dataclass(frozen=True)
class LayerSelector:
    """A selector's share of one layer: neurons that score above `threshold` are selected.

    low_rank: score = b (a x) + bias, a (rank, d_model) and b (d_ff, rank). ternary: rows (d_ff, row bytes) uint8 as
    `join_ternary` gives them, gate's before up's, or None for the writer to derive them from the weights; `bias`
    (d_ff,) is added to the up product, as a layer's own bias is; noise (d_ff, 2), or (d_ff, 1) without a gate, are
    the variances of what the activated product of the first row, and that of the second, differ from the true ones
    by (None: 0). Neurons are in the checkpoint's order.
    """

    threshold: float
    a: np.ndarray | None = None
    b: np.ndarray | None = None
    bias: np.ndarray | None = None
    rows: np.ndarray | None = None
    noise: np.ndarray | None = None


class PackWriter:
    """Writes a pack so that nothing that looks whole exists before it is whole.

    A context manager. Layers are added in order, one in memory at a time, into a hidden folder beside the target.
    Leaving the `with` block writes the header and the manifest, syncs all to disk and renames the folder into
    place; leaving it with an exception removes the folder.

        with PackWriter("model.flash", PackSpec(layers=24, d_model=2048, d_ff=8192, dtype="int4")) as writer:
            for layer in range(24):
                writer.add_layer(FeedForward(gate=..., up=..., down=...), order=hottest_first[layer])
            writer.add_matrix("model.embed", embeddings, "int8")

    Raises BundleError for a target that exists or cannot be written and for a full disk, RuntimeFailure for weights
    that do not fit the spec.
    """

    def __init__(self, path: str | os.PathLike[str], spec: PackSpec, overwrite: bool = False) -> None:
        self.spec = spec
        self._groups = Groups.of(spec)
        self._records: list[LayerRecord] = []
        self._others: list[str] = []
        self._folder = StagedFolder(
            path, kind="flash pack", is_kind=_is_pack, overwrite=overwrite, error=BundleError
        )

    def __enter__(self) -> Self:
        self._partial = self._folder.open()
        try:
            self._neurons = (self._partial / NEURONS_NAME).open("wb")
            self._neurons.seek(header_bytes(self.spec.layers))
            self._resident = _Safetensors(self._partial / RESIDENT_NAME)
        except OSError as error:
            raise self._folder.failure(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
                self._folder.commit()
            elif isinstance(error, OSError) and is_full(error):
                raise self._failure(error) from error
        except OSError as failure:
            raise self._failure(failure) from failure
        finally:
            self._close()
            self._folder.discard()

    def add_layer(
        self,
        weights: FeedForward,
        *,
        order: np.ndarray | None = None,
        importance: np.ndarray | None = None,
        threshold: float = 0.0,
        selector: LayerSelector | None = None,
    ) -> None:
        """Add the next layer.

        order: (d_ff,) ids of the neurons in the order to store them, the hottest first; else the checkpoint's.
        importance: (d_ff,) what |h| is multiplied with before it is compared with `threshold` (exact mode) or with
        a ternary selector's threshold; the norm of the down column, say. By default 1.
        """
        layer = len(self._records)
        if layer == self.spec.layers:
            raise RuntimeFailure(f"The spec has {layer} layers, and all were added.")
        self._check(weights, importance, selector)
        order = self._permutation(order)
        self._add_tensors(layer, weights, order, importance, selector)
        self._records.append(self._write_bundles(weights, order, float(threshold)))

    def add_resident(self, name: str, array: np.ndarray) -> None:
        """Add a tensor that stays in memory. Names that start with `flash.` are the engine's."""
        if name.startswith("flash."):
            raise RuntimeFailure(f'"{name}" cannot name a tensor of the model: names in flash. are the engine\'s.')
        self._resident.add(name, array)

    def add_matrix(self, name: str, matrix: Rows, dtype: str, group_size: int = 32) -> None:
        """Add a model's matrix (rows, columns) as `dtype`: fp32 and fp16 as floats, others as stored rows."""
        if dtype in _FLOATS:
            self.add_resident(name, np.asarray(as_floats(matrix), _FLOATS[dtype]))
        else:
            self.add_resident(name, encode_rows(matrix, dtype, group_size))

    def add_file(self, name: str, text: str) -> None:
        """Add a text file that travels with the pack, such as tokenizer.json."""
        if name in (MANIFEST_NAME, NEURONS_NAME, RESIDENT_NAME) or Path(name).name != name or name.startswith("."):
            raise RuntimeFailure(f"{name!r} cannot name a file of a pack: it is taken or no plain name.")
        (self._partial / name).write_text(text, encoding="utf-8")
        self._others.append(name)

    def _check(self, weights: FeedForward, importance: np.ndarray | None, selector: LayerSelector | None) -> None:
        spec = self.spec
        rows, columns, neurons = (spec.d_ff, spec.d_model), (spec.d_model, spec.d_ff), (spec.d_ff,)
        wanted: dict[str, tuple[Rows | None, tuple[int, ...] | None]] = {
            "gate": (weights.gate, rows if spec.gated else None),
            "up": (weights.up, rows),
            "down": (weights.down, columns),
            "up_bias": (weights.up_bias, neurons if spec.up_bias else None),
            "down_bias": (weights.down_bias, (spec.d_model,) if spec.down_bias else None),
        }
        if importance is not None:
            wanted["importance"] = (importance, neurons)
        if (selector is not None) != (spec.selector != "none"):
            raise RuntimeFailure(
                f"The spec's selector is {spec.selector}: a layer needs a LayerSelector exactly then."
            )
        if selector is not None:
            low_rank = spec.selector == "low_rank"
            wanted["selector.a"] = (selector.a, (spec.selector_size, spec.d_model) if low_rank else None)
            wanted["selector.b"] = (selector.b, (spec.d_ff, spec.selector_size) if low_rank else None)
            parts = 2 if spec.gated else 1
            two_bits = None if low_rank else (spec.d_ff, parts * spec.ternary_part_bytes)
            optional: dict[str, tuple[Rows | None, tuple[int, ...] | None]] = {
                "selector.bias": (selector.bias, neurons),
                "selector.rows": (selector.rows, two_bits),
                "selector.noise": (selector.noise, None if low_rank else (spec.d_ff, parts)),
            }
            wanted |= {name: given for name, given in optional.items() if given[0] is not None}
        faults = [
            f"{name} is {None if array is None else array.shape}, the spec says {shape}"
            for name, (array, shape) in wanted.items()
            if (None if array is None else array.shape) != shape
        ]
        if faults:
            raise RuntimeFailure(f"Layer {len(self._records)}: " + "; ".join(faults) + ".")

    def _permutation(self, order: np.ndarray | None) -> np.ndarray:
        everyone = np.arange(self.spec.d_ff)
        if order is None:
            return everyone
        if not np.array_equal(np.sort(order), everyone):
            raise RuntimeFailure(f"order is not a permutation of the {self.spec.d_ff} neurons.")
        return np.asarray(order)

    def _add_tensors(
        self,
        layer: int,
        weights: FeedForward,
        order: np.ndarray,
        importance: np.ndarray | None,
        selector: LayerSelector | None,
    ) -> None:
        """The engine's tensors, by position."""
        prefix = f"flash.{layer}."
        if not np.array_equal(order, np.arange(len(order))):
            self._resident.add(prefix + "order", order.astype(np.int32))
        if importance is not None:
            self._resident.add(prefix + "importance", importance[order].astype(np.float32))
        if weights.down_bias is not None:
            self._resident.add(prefix + "down_bias", weights.down_bias.astype(np.float32))
        if selector is None:
            return
        self._resident.add(prefix + "selector.threshold", np.array([selector.threshold], np.float32))
        if selector.bias is not None:
            self._resident.add(prefix + "selector.bias", selector.bias[order].astype(np.float32))
        if selector.a is not None and selector.b is not None:
            self._resident.add(prefix + "selector.a", selector.a.astype(np.float16))
            self._resident.add(prefix + "selector.b", selector.b[order].astype(np.float16))
            return
        rows = selector.rows
        if rows is None:
            parts = [as_floats(part) for part in (weights.gate, weights.up) if part is not None]
            rows = np.concatenate([encode_ternary(part, self.spec.selector_size) for part in parts], axis=1)
        self._resident.add(prefix + "selector.rows", rows[order])
        if selector.noise is not None:
            self._resident.add(prefix + "selector.noise", selector.noise[order].astype(np.float32))

    def _write_bundles(self, weights: FeedForward, order: np.ndarray, threshold: float) -> LayerRecord:
        groups, spec = self._groups, self.spec
        offset = self._neurons.tell()
        digest = hashlib.sha256()
        slab = max(1, _SLAB_BYTES // (12 * spec.d_model * groups.bundles_per_group)) * groups.bundles_per_group
        for first in range(0, spec.d_ff, slab):
            ids = order[first : first + slab]
            bundles = np.zeros((-(-len(ids) // groups.bundles_per_group), groups.group_bytes), np.uint8)
            room = bundles[:, : groups.bundles_per_group * groups.bundle_stride]
            encoded = np.zeros((len(bundles) * groups.bundles_per_group, groups.bundle_stride), np.uint8)
            encoded[: len(ids), : spec.bundle_bytes] = self._encode(weights, ids)
            room[:] = encoded.reshape(room.shape)
            digest.update(bundles.data)
            self._neurons.write(bundles.data)
        return LayerRecord(offset, groups.layer_bytes(spec.d_ff), digest.hexdigest(), threshold)

    def _encode(self, weights: FeedForward, ids: np.ndarray) -> np.ndarray:
        """(n, bundle_bytes) uint8."""
        spec = self.spec
        parts: list[Rows] = [weights.up[ids], weights.down[:, ids].T]
        if weights.gate is not None:
            parts.insert(0, weights.gate[ids])
        stored = [encode_rows(part, spec.dtype, spec.group_size) for part in parts]
        padding = spec.bundle_bytes - len(parts) * spec.part_bytes - (4 if spec.up_bias else 0)
        stored.append(np.zeros((len(ids), padding), np.uint8))
        if weights.up_bias is not None:
            stored.append(weights.up_bias[ids].astype("<f4")[:, None].view(np.uint8))
        return np.concatenate(stored, axis=1)

    def _finish(self) -> None:
        if len(self._records) != self.spec.layers:
            raise RuntimeFailure(
                f"The pack is not complete: {len(self._records)} of {self.spec.layers} layers were added."
            )
        resident = self._resident.finish()
        header = encode_header(self.spec, self._groups, self._records, resident["size_bytes"], resident["sha256"])
        neurons_bytes = self._neurons.tell()
        self._neurons.seek(0)
        self._neurons.write(header)
        self._neurons.close()
        identity = identity_of(header)
        entries = {NEURONS_NAME: {"size_bytes": neurons_bytes}, RESIDENT_NAME: resident}
        for name in self._others:
            file = self._partial / name
            entries[name] = {"size_bytes": file.stat().st_size, "sha256": files.sha256_of(file)}
        text = json.dumps(manifest(self.spec, self._groups, self._records, identity, entries), indent=2)
        (self._partial / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    def _close(self) -> None:
        # What is still buffered may not fit on a full disk; the file is about to be removed.
        for stream in (self._neurons, self._resident):
            try:
                stream.close()
            except OSError:
                continue

    def _failure(self, error: OSError) -> Exception:
        self._close()
        return self._folder.failure(error)


def _is_pack(folder: Path) -> bool:
    return (folder / NEURONS_NAME).is_file()


@dataclass
class _Safetensors:
    """A safetensors file written as its tensors come: their names are known last, and the header comes first."""

    path: Path
    _entries: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._data_path = self.path.with_suffix(".data")
        self._data: IO[bytes] = self._data_path.open("w+b")

    def add(self, name: str, array: np.ndarray) -> None:
        if name in self._entries:
            raise RuntimeFailure(f'There are two resident tensors named "{name}".')
        if array.dtype.name not in _DTYPES:
            raise RuntimeFailure(f"{name} is {array.dtype}; a resident tensor is one of {', '.join(_DTYPES)}.")
        if re.search(r'[\x00-\x1f"\\]', name):
            raise RuntimeFailure(f"{name!r} cannot name a tensor: no quotes, backslashes or control characters.")
        first = self._data.tell()
        self._data.write(np.ascontiguousarray(array).data)
        self._entries[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [first, self._data.tell()],
        }

    def finish(self) -> dict[str, Any]:
        """Write the file; returns its size and hash."""
        text = json.dumps(self._entries, separators=(",", ":"), ensure_ascii=False).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        self._data.seek(0)
        with self.path.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(self._data, stream, 1 << 20)
        self.close()
        self._data_path.unlink()
        return {"size_bytes": self.path.stat().st_size, "sha256": files.sha256_of(self.path)}

    def close(self) -> None:
        self._data.close()
