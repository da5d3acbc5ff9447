"""neurons.bin as the writer lays it out; `src/format.h` reads it and docs/flash.md has the byte tables."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import RuntimeFailure
from .quantise import BLOCK, GROUPED, row_bytes

# Beside the manifest, where the checkpoint has them.
TOKENIZER_NAME = "tokenizer.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"

FORMAT_VERSION = 1
PAGE_BYTES = 16 * 1024

ACTIVATIONS = {"relu": 1, "silu": 2}
DTYPES = {"fp16": 1, "int8": 2, "int4": 3, "fp32": 4, "int4m": 5}
SELECTORS = {"none": 0, "low_rank": 1, "ternary": 2}

_MAGIC = b"HHFLASH\0"
_HASHED_FROM = 48
_FIXED_BYTES = 192
_RECORD_BYTES = 64
_MAX_PAGES_PER_GROUP = 16


@dataclass(frozen=True)
class PackSpec:
    """The feed-forward layers of a model, all of one shape, and how they are stored.

    gated: activation(gate x) * (up x), else activation(up x + up_bias). group_size: weights per scale of int8,
    int4 and int4m, a power of two of 32 or more. selector_size: the rank of a low-rank selector, the weights per
    scale of a ternary one. Raises RuntimeFailure listing every field that is out of range.
    """

    layers: int
    d_model: int
    d_ff: int
    activation: str = "silu"
    gated: bool = True
    dtype: str = "int8"
    group_size: int = 32
    up_bias: bool = False
    down_bias: bool = False
    selector: str = "none"
    selector_size: int = 0

    def __post_init__(self) -> None:
        if faults := self._faults():
            raise RuntimeFailure("This cannot be packed: " + "; ".join(faults) + ".")

    def _faults(self) -> list[str]:
        faults = []
        for name, table in (("activation", ACTIVATIONS), ("dtype", DTYPES), ("selector", SELECTORS)):
            if getattr(self, name) not in table:
                faults.append(f"{name} is {getattr(self, name)!r}, allowed are {', '.join(table)}")
        if not 1 <= self.layers <= 4096:
            faults.append(f"layers is {self.layers}, allowed are 1 to 4096")
        if not 1 <= self.d_ff <= 1 << 24:
            faults.append(f"d_ff is {self.d_ff}, allowed are 1 to {1 << 24}")
        if self.d_model % BLOCK or not BLOCK <= self.d_model <= 1 << 17:
            faults.append(f"d_model is {self.d_model}, allowed are multiples of {BLOCK} up to {1 << 17}")
        elif self.dtype in GROUPED and not self._is_group(self.group_size):
            faults.append(
                f"group_size is {self.group_size}, allowed are powers of two from {BLOCK} that divide d_model"
            )
        size = self.selector_size
        if self.selector == "low_rank" and (size % BLOCK or not 0 < size <= self.d_model):
            faults.append(f"selector_size is {size}, allowed are multiples of {BLOCK} up to d_model")
        if self.selector == "ternary" and (size % BLOCK or size < BLOCK or self.d_model % size):
            faults.append(f"selector_size is {size}, allowed are multiples of {BLOCK} that divide d_model")
        if self.selector == "none" and size:
            faults.append("selector_size is for selectors")
        return faults

    def _is_group(self, size: int) -> bool:
        return size >= BLOCK and size & (size - 1) == 0 and self.d_model % size == 0

    @property
    def stored_group_size(self) -> int:
        return self.group_size if self.dtype in GROUPED else 0

    @property
    def part_bytes(self) -> int:
        """A row of weights with its scales."""
        return row_bytes(self.dtype, self.d_model, self.group_size)

    @property
    def ternary_part_bytes(self) -> int:
        """A selector's two-bit row with its scales."""
        return self.d_model // 4 + 2 * (self.d_model // self.selector_size)

    @property
    def bundle_bytes(self) -> int:
        """[gate part | up part | down part | up bias]."""
        parts = (3 if self.gated else 2) * self.part_bytes
        return _round_up(parts, 4) + (4 if self.up_bias else 0)


@dataclass(frozen=True)
class Groups:
    """How bundles share 16 KiB pages."""

    bundle_stride: int
    bundles_per_group: int
    group_bytes: int

    @classmethod
    def of(cls, spec: PackSpec) -> Groups:
        """The smallest group that wastes at most a sixteenth, else the least wasteful of those tried."""
        stride = _round_up(spec.bundle_bytes, 16)
        pages = -(-stride // PAGE_BYTES)
        candidates = [
            cls(stride, count * PAGE_BYTES // stride, count * PAGE_BYTES)
            for count in range(pages, pages + _MAX_PAGES_PER_GROUP)
        ]
        waste = {groups: 1 - groups.bundles_per_group * stride / groups.group_bytes for groups in candidates}
        least = min(candidates, key=waste.__getitem__)
        return next((groups for groups in candidates if waste[groups] <= 1 / 16), least)

    def layer_bytes(self, d_ff: int) -> int:
        return -(-d_ff // self.bundles_per_group) * self.group_bytes


@dataclass(frozen=True)
class LayerRecord:
    """Where a layer lies in neurons.bin, its hash, and the threshold of exact mode."""

    offset: int
    size_bytes: int
    sha256: str
    threshold: float


def header_bytes(layers: int) -> int:
    return _round_up(_FIXED_BYTES + layers * _RECORD_BYTES, PAGE_BYTES)


def encode_header(
    spec: PackSpec, groups: Groups, records: Sequence[LayerRecord], resident_bytes: int, resident_sha256: str
) -> bytes:
    """The header with its hash, ready to be written at offset 0."""
    size = header_bytes(len(records))
    file_bytes = size + sum(record.size_bytes for record in records)
    fixed = struct.pack(
        "<QQ32s13I",
        file_bytes,
        resident_bytes,
        bytes.fromhex(resident_sha256),
        spec.layers,
        spec.d_model,
        spec.d_ff,
        ACTIVATIONS[spec.activation],
        int(spec.gated),
        DTYPES[spec.dtype],
        spec.stored_group_size,
        groups.bundle_stride,
        groups.bundles_per_group,
        groups.group_bytes,
        int(spec.up_bias) | int(spec.down_bias) << 1,
        SELECTORS[spec.selector],
        spec.selector_size,
    )
    table = b"".join(
        struct.pack("<QQ32sf12x", record.offset, record.size_bytes, bytes.fromhex(record.sha256), record.threshold)
        for record in records
    )
    hashed = (fixed.ljust(_FIXED_BYTES - _HASHED_FROM, b"\0") + table).ljust(size - _HASHED_FROM, b"\0")
    return _MAGIC + struct.pack("<II", FORMAT_VERSION, size) + hashlib.sha256(hashed).digest() + hashed


def identity_of(header: bytes) -> str:
    """The hash that names a pack, of its header."""
    return header[16:48].hex()


def manifest(
    spec: PackSpec,
    groups: Groups,
    records: Sequence[LayerRecord],
    identity: str,
    files: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """What manifest.json says: the header again, for people and tools that do not read neurons.bin."""
    return {
        "format": "handheld.flash",
        "format_version": FORMAT_VERSION,
        "identity": identity,
        "model": asdict(spec),
        "groups": asdict(groups),
        "files": files,
        "layers": [asdict(record) for record in records],
    }


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to
