"""The models that benchmarks of the flash engine run: a real small one, and shapes of larger ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flash_shapes import SHAPES, write_gguf, write_pack
from side_by_side import note

from handheld.models.errors import ModelError
from handheld.models.llm.embedded import embedded_file
from handheld.runtime.flash import Pack, open_pack

REAL = "smollm2"
MODELS = (REAL, "1b", "3b", "tiny")
_CONTEXT = 512


@dataclass(frozen=True)
class Subject:
    """A model as a pack and a GGUF file of the same bits per weight, and the tokens that it decodes."""

    name: str
    synthetic: bool
    pack: Path
    gguf: Path
    tokens: Sequence[int]
    context: int = _CONTEXT

    def open(self) -> Pack:
        return open_pack(self.pack)


def prepare(name: str, dtype: str, workdir: Path, with_gguf: bool) -> Subject:
    """Write what is not in the working folder yet. Raises SystemExit where the real model is not installed."""
    pack = workdir / f"{name}-{dtype}.flash"
    if name == REAL:
        gguf = _real_gguf(workdir)
        if not pack.exists():
            note(f"{name}: packing, with calibration")
            _pack_real(pack, dtype)
        return Subject(name, False, pack, gguf, _text_tokens(pack))
    shape, gguf = SHAPES[name], workdir / f"{name}-{dtype}.gguf"
    if not pack.exists():
        note(f"{name}: writing a pack of random weights")
        write_pack(pack, shape, dtype)
    if with_gguf and not gguf.exists():
        note(f"{name}: writing a GGUF file of random weights")
        partial = gguf.with_suffix(".partial")
        write_gguf(partial, shape, dtype)
        os.rename(partial, gguf)
    return Subject(name, True, pack, gguf, range(shape.vocab))


def evictable(gguf: Path, bytes_out: int) -> list[list[int]]:
    """Ranges [offset, bytes] of feed-forward weights that add up to `bytes_out`: of each layer its last ones, in
    one piece where the file has them so, which is what reading ahead likes best."""
    from gguf import GGUFReader

    layers: dict[str, list[tuple[int, int]]] = {}
    for tensor in GGUFReader(gguf).tensors:
        if ".ffn_" in tensor.name and "norm" not in tensor.name:
            layers.setdefault(tensor.name.split(".")[1], []).append((int(tensor.data_offset), int(tensor.n_bytes)))
    ranges = []
    for place, tensors in enumerate(layers.values()):
        left = bytes_out * (place + 1) // len(layers) - bytes_out * place // len(layers)
        for offset, size in sorted(tensors, reverse=True):
            taken = min(size, left)
            if taken:
                ranges.append([offset + size - taken, taken])
                left -= taken
    return ranges


def feed_forward_bytes(gguf: Path) -> int:
    return sum(size for _, size in evictable(gguf, 1 << 50))


def reference_text() -> str:
    """Python's own reference, which comes with every interpreter."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def _real_gguf(workdir: Path) -> Path:
    try:
        given = embedded_file()
    except ModelError as error:
        raise SystemExit(f"{REAL}: not measured: {error} Or choose others with --models.") from error
    # A file of the run's own, on the disk that is measured: only what nobody else maps can be paged out.
    copy = workdir / given.name
    if not copy.exists():
        partial = copy.with_suffix(".partial")
        partial.write_bytes(given.read_bytes())
        os.rename(partial, copy)
    return copy


def _pack_real(path: Path, dtype: str, pieces: int = 8, length: int = 256) -> None:
    from tokenizers import Tokenizer

    from handheld.convert.llm import PackOptions, pack_model
    from handheld.models.llm import open_checkpoint

    checkpoint = open_checkpoint(REAL)
    files = checkpoint.tokenizer()
    assert files is not None  # that of smollm2 comes in its GGUF file
    text = reference_text()
    ids = Tokenizer.from_str(files.tokenizer).encode(text[: len(text) // 2]).ids
    tokens = np.array(ids[: pieces * length]).reshape(pieces, length)
    pack_model(checkpoint, path, PackOptions(dtype=dtype, selector="ternary"), tokens)


def _text_tokens(pack: Path, count: int = 1024) -> list[int]:
    """Of the half of the text that calibration has not seen."""
    from handheld.runtime.flash.text import PackTokenizer

    text = reference_text()
    return PackTokenizer(pack).encode(text[len(text) // 2 :][: 8 * count])[:count]
