"""The native engine from Python: packs, sessions, models and their options."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import BundleError, RuntimeMissing
from .pack import MANIFEST_NAME

if TYPE_CHECKING:
    from . import _flash

Mode = Literal["dense", "exact", "selected"]
Ids = np.ndarray | Sequence[int]

UNLIMITED = 0xFFFFFFFF  # window_tokens, pinned_neurons: as much as the budget holds
MOST = 0xFFFFFFFE  # pinned_neurons: four fifths of what the budget holds, or all where that holds all

# Fields of SessionOptions that are flags of one field in C.
_TECHNIQUES = {
    "bundling": 1,
    "merging": 2,
    "compute_resident": 4,
    "io_uring": 8,
    "neighbours": 16,
    "int8_activations": 32,
    "int8_hidden": 64,
    "gate_first": 128,
}
_KERNELS = {"auto": 0, "portable": 1, "avx2": 2, "avx512": 3, "neon": 4}
_SELECTORS = {"pack": 0, "hot": 3}
_MODES = {"dense": 0, "exact": 1, "selected": 2}
_KV_DTYPES = {"fp16": 1, "fp32": 4}


@dataclass(frozen=True)
class SessionOptions:
    """How a session computes; flash.h has the details of each field.

    budget_bytes is a hard limit of all that the session holds. The technique switches (bundling, merging,
    compute_resident, io_uring, neighbours, int8_activations, int8_hidden, gate_first) are there to measure what
    each is worth.
    """

    budget_bytes: int
    reader_threads: int = 16
    compute_threads: int = 2
    window_tokens: int = 5
    pinned_neurons: int = 0
    merge_gap_bytes: int = 8 * 1024
    chunk_bytes: int = 128 * 1024
    select_share: float = 0.0
    miss_weight: float = 1.0
    bundling: bool = True
    merging: bool = True
    compute_resident: bool = True
    io_uring: bool = True
    neighbours: bool = True
    int8_activations: bool = True
    int8_hidden: bool = True
    gate_first: bool = True
    kernels: str = "auto"
    selector: str = "pack"

    def native(self) -> _flash.Options:
        options = load_native().Options()
        options.techniques = sum(flag for name, flag in _TECHNIQUES.items() if getattr(self, name))
        options.kernels = _named(_KERNELS, "kernels", self.kernels)
        options.selector = _named(_SELECTORS, "selector", self.selector)
        for item in fields(self):
            if item.name not in (*_TECHNIQUES, "kernels", "selector"):
                setattr(options, item.name, getattr(self, item.name))
        return options


class Session:
    """One text being decoded. Calls from several threads wait for each other, except `cancel`."""

    def __init__(self, native: _flash.Session) -> None:
        self._native = native

    def ffn(self, layer: int, x: np.ndarray, mode: Mode = "selected", neurons: Ids | None = None) -> np.ndarray:
        """One feed-forward layer for one token: x (d_model,) fp32 -> (d_model,) fp32.

        neurons: ids of the checkpoint, for selected mode; by default the selector chooses. Raises FlashError.
        """
        return self._native.ffn(layer, _floats(x), mode, _ids(neurons))

    def prefetch(self, layer: int, x: np.ndarray | None = None, neurons: Ids | None = None) -> None:
        """Start to load what the layer's next token should need: `neurons`, or the selector's choice for x."""
        self._native.prefetch(layer, None if x is None else _floats(x), _ids(neurons))

    def select(self, layer: int, x: np.ndarray) -> np.ndarray:
        """The selector's choice for x, as ids of the checkpoint in the pack's order. Reads nothing."""
        return self._native.select(layer, _floats(x))

    def resident(self, layer: int) -> np.ndarray:
        """The ids of the neurons that the layer holds."""
        return self._native.resident(layer)

    def cancel(self) -> None:
        """Make the running call and all later ones raise FlashError, until `resume`. For another thread to call."""
        self._native.cancel()

    def resume(self) -> None:
        self._native.resume()

    def reset(self) -> None:
        """Forget the window and set the counters to zero: a new text begins."""
        self._native.reset()

    def stats(self) -> _flash.Stats:
        return self._native.stats()


@dataclass(frozen=True)
class ModelOptions:
    """How a whole model computes; flash.h has the details of each field.

    session.budget_bytes limits all that the model holds: embedding, attention, head, key-value cache, neurons.
    mode: of every feed-forward layer; selected mode computes prompts, calls with more than one token, as exact mode
    does, unless its selector is "hot". context_tokens: room of the key-value cache, allocated at open; 0: 512, or
    all positions that the model has if they are fewer. read_ahead: dense and exact mode read what the next layer
    will need under this layer's arithmetic. prefetch: selected mode chooses a layer's neurons before the layer's
    attention, as if that added what it added to the token before, and reads them under it.
    """

    session: SessionOptions
    mode: Mode = "exact"
    context_tokens: int = 0
    kv_dtype: Literal["fp32", "fp16"] = "fp32"
    read_ahead: bool = True
    prefetch: bool = True

    def native(self) -> _flash.ModelOptions:
        options = load_native().ModelOptions()
        options.mode = _named(_MODES, "mode", self.mode)
        options.context_tokens = self.context_tokens
        options.kv_dtype = _named(_KV_DTYPES, "kv_dtype", self.kv_dtype)
        options.read_ahead = int(self.read_ahead)
        options.prefetch = int(self.prefetch)
        options.session = self.session.native()
        return options


class Model:
    """One text being decoded by a whole model. Calls from several threads wait for each other, except `cancel`."""

    def __init__(self, native: _flash.Model, eos: Sequence[int]) -> None:
        self._native = native
        self._eos = frozenset(eos)

    def decode(self, tokens: Ids) -> np.ndarray:
        """Append tokens (n,) to the text; returns the logits (vocab,) fp32 of what follows the last one.

        After a FlashError the text is what it was before the call.
        """
        return self._native.decode(_tokens(tokens))

    def decode_all(self, tokens: Ids) -> np.ndarray:
        """Append tokens (n,) to the text; returns logits (n, vocab) fp32, a row for what follows each."""
        return self._native.decode_all(_tokens(tokens))

    def generate(self, prompt: Ids, max_tokens: int) -> Iterator[int]:
        """Append the prompt (n,), then yield the likeliest token at most `max_tokens` times.

        Ends early after a token of the model's eos. The last token yielded is not part of the text yet: what is
        decoded next starts with it.
        """
        tokens = _tokens(prompt)
        for _ in range(max_tokens):
            tokens = self._native.generate(tokens, 1)
            yield int(tokens[0])
            if int(tokens[0]) in self._eos:
                return

    def resident(self, layer: int) -> np.ndarray:
        """The ids of the neurons that the layer holds."""
        return self._native.resident(layer)

    def truncate(self, tokens: int) -> None:
        """Shorten the text to its first `tokens` tokens. Resident neurons stay."""
        self._native.truncate(tokens)

    def cancel(self) -> None:
        """Make the running call and all later ones raise FlashError, until `resume`. For another thread to call."""
        self._native.cancel()

    def resume(self) -> None:
        self._native.resume()

    def reset(self) -> None:
        """Empty the text, forget the window and set the counters to zero."""
        self._native.reset()

    def stats(self) -> _flash.ModelStats:
        return self._native.stats()


class Pack:
    """An open pack; its sessions may run at the same time and outlive it."""

    def __init__(self, path: str | os.PathLike[str], direct_io: bool = True) -> None:
        self.path = Path(path)
        self._native = load_native().Pack(os.fspath(self.path), direct_io)
        self._check_manifest()

    @property
    def info(self) -> _flash.Info:
        return self._native.info

    def verify(self) -> None:
        """Read everything and compare every hash. Raises FlashError naming what was altered."""
        self._native.verify()

    def floor_bytes(self, options: SessionOptions) -> int:
        """The smallest budget with which these options open a session."""
        return self._native.floor_bytes(options.native())

    def session(self, options: SessionOptions) -> Session:
        return Session(self._native.session(options.native()))

    @property
    def model_info(self) -> _flash.ModelInfo:
        """Raises FlashError for a pack that holds feed-forward layers only."""
        return self._native.model_info

    def model_floor_bytes(self, options: ModelOptions) -> int:
        """The smallest session.budget_bytes with which these options open a model."""
        return self._native.model_floor_bytes(options.native())

    def model(self, options: ModelOptions) -> Model:
        return Model(self._native.model(options.native()), self.model_info.eos)

    def _check_manifest(self) -> None:
        try:
            manifest = json.loads((self.path / MANIFEST_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(f"{self.path}: {MANIFEST_NAME} cannot be read: {error}. Fetch it again.") from error
        if not isinstance(manifest, dict) or manifest.get("identity") != self.info.identity.hex():
            raise BundleError(f"{self.path}: {MANIFEST_NAME} is of another pack than neurons.bin. Fetch it again.")


def open_pack(path: str | os.PathLike[str], direct_io: bool = True) -> Pack:
    """Open a pack. direct_io: reads bypass the page cache where the file system can (`info.direct_io` says if).

    Raises FlashError for what is not a whole pack, RuntimeMissing where the native engine is not built.
    """
    return Pack(path, direct_io)


def load_native() -> Any:
    """The extension module. Raises RuntimeMissing where it was not built."""
    try:
        from . import _flash
    except ImportError as error:
        raise RuntimeMissing(
            f"The flash engine's native part is not installed ({error}). Install a C++17 compiler (g++ or clang) "
            "and install handheld again, or run `make flash` in a checkout."
        ) from error
    return _flash


def _named(table: dict[str, int], what: str, name: str) -> int:
    if name not in table:
        raise ValueError(f'There is no {what} "{name}": use one of {", ".join(table)}.')
    return table[name]


def _floats(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, dtype=np.float32)


def _ids(neurons: Ids | None) -> np.ndarray | None:
    return None if neurons is None else _unsigned(neurons, "Ids of neurons")


def _tokens(tokens: Ids) -> np.ndarray:
    return _unsigned(tokens, "Tokens")


def _unsigned(given: Ids, what: str) -> np.ndarray:
    values = np.asarray(given)
    if values.size and (values.min() < 0 or values.max() > UNLIMITED):
        raise ValueError(f"{what} are not negative and fit 32 bits.")
    return np.ascontiguousarray(values, dtype=np.uint32)
