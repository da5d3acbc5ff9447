"""Checkpoints as transformers saves them, from a folder or a hub id. Nothing is ever unpickled freely."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError
from ..hub import fetch, is_hub_id, names_on_hub
from ..reading import load_pickled, open_safetensors, read_json, weight_files
from .architectures import ARCHITECTURES, Architecture
from .checkpoint import Checkpoint, TokenizerFiles
from .config import DecoderConfig
from .tokenizer import from_transformers

_NEEDED = "config.json and model.safetensors"
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
# In the order in which they are looked for.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class FolderCheckpoint(Checkpoint):
    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self._folder = _find(source, _SMALL_FILES)
        self._architecture = _architecture(self._folder)
        self.config = _config(self._folder, self._architecture)
        if not Path(source).expanduser().is_dir():
            # A hub's weights are fetched only now that the configuration is known to be usable.
            self._folder = _fetch_weights(str(source))
        self._where = _Weights(self._folder)

    def tokenizer(self) -> TokenizerFiles | None:
        names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
        if not any((self._folder / name).is_file() for name in names):
            return None
        return from_transformers(self._folder, self.source)

    def _tensor(self, name: str, layer: int | None) -> np.ndarray | None:
        table = self._architecture.outer if layer is None else self._architecture.layer
        if name not in table:
            return None
        full = table[name].format(layer)
        # Some are saved from the bare model, whose names lack the prefix.
        for candidate in (full, full.removeprefix("model.")):
            if candidate in self._where.names:
                return self._where.read(candidate).to(torch.float32).numpy()
        return None


class _Weights:
    """Which file holds which tensor, and reading one."""

    def __init__(self, folder: Path) -> None:
        self.names: dict[str, Callable[[str], Tensor]] = {}
        files = _files(folder)
        for file in files:
            opened = _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickled(file)
            self.names.update(opened)

    def read(self, name: str) -> Tensor:
        return self.names[name](name)


def _open_safetensors(file: Path) -> dict[str, Callable[[str], Tensor]]:
    opened = open_safetensors(file)
    return dict.fromkeys(opened.keys(), opened.get_tensor)


def _open_pickled(file: Path) -> dict[str, Callable[[str], Tensor]]:
    state = load_pickled(file, mmap=True)
    if not isinstance(state, dict):
        raise ModelError(f"{file} holds a {type(state).__name__}; a dict of tensors by name is needed.")
    return {name: state.__getitem__ for name, value in state.items() if isinstance(value, Tensor)}


def _files(folder: Path) -> list[Path]:
    for name in _WEIGHTS:
        files = weight_files(folder, name)
        if files == [folder / name] and not files[0].is_file():
            continue
        if missing := [file.name for file in files if not file.is_file()]:
            raise ModelError(f"{folder} lacks {', '.join(missing)}, which {name}.index.json lists.")
        return files
    raise ModelError(f"{folder} has no {' and no '.join(_WEIGHTS)}. Save the model with save_pretrained.")


def _find(source: str | Path, patterns: list[str]) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(source):
        raise ModelError(
            f"{source} does not exist. A language model is a folder with config.json and model.safetensors, a "
            ".gguf file, a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, or smollm2."
        )
    return fetch(str(source), patterns, _NEEDED)


def _fetch_weights(hub_id: str) -> Path:
    stored = names_on_hub(hub_id)
    pickled = stored is not None and not any(name.endswith(".safetensors") for name in stored)
    return fetch(hub_id, [*_SMALL_FILES, "pytorch_model*.bin" if pickled else "model*.safetensors"], _NEEDED)


def _architecture(folder: Path) -> Architecture:
    content = read_json(folder / "config.json")
    names = content.get("architectures") or []
    if "quantization_config" in content:
        raise ModelError(f"{folder} is a quantised checkpoint. Give the unquantised one, or a GGUF file.")
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise ModelError(
        f"{folder / 'config.json'} is of architecture {', '.join(map(str, names)) or 'unknown'}, which is not "
        f"supported. Supported: {', '.join(ARCHITECTURES)}."
    )


def _config(folder: Path, architecture: Architecture) -> DecoderConfig:
    from dataclasses import replace

    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise ModelError(
            "Checkpoints of language models need transformers: pip install 'handheld[llm]'."
        ) from error
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder / 'config.json'} does not describe a usable model: {error}.") from error
    found = architecture.config(config)
    generation = folder / "generation_config.json"
    eos = read_json(generation).get("eos_token_id") if generation.is_file() else None
    if eos is None:
        return found
    return replace(found, eos=tuple(eos) if isinstance(eos, list) else (eos,))
