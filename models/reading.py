"""Reading the files that checkpoints are made of. Nothing is ever unpickled freely."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import ModelError

# Suffixes of files that pickle holds; they are read only if they hold nothing but tensors.
PICKLED = (".pth", ".pt", ".ckpt", ".bin")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError naming the file and what is wrong with it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds a JSON {type(content).__name__}; an object is needed.")
    return content


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files of a checkpoint's weights: those that the index `NAME.index.json` lists, else the one file `name`.

    The files may be missing. Raises ModelError for an index without a table of files, and for one that names files
    outside of the folder.
    """
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return [folder / name]
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise ModelError(f"{index} has no weight_map, the table of the files that hold the weights.")
    names = sorted(set(table.values()))
    if outside := [file for file in names if Path(file).name != file]:
        raise ModelError(f"{index} lists {', '.join(outside)}: the files of a checkpoint lie in its own folder.")
    return [folder / file for file in names]


def open_safetensors(file: Path) -> Any:
    """Open a safetensors file for torch: `keys()`, `get_tensor(name)`. Raises ModelError if it is not whole."""
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a whole safetensors file ({error}). Copy or download it again.") from error


def load_pickled(file: Path, *, mmap: bool = False) -> Any:
    """What a file of torch.save holds, if that is tensors, containers and numbers.

    Args:
        mmap: whether tensors are mapped from the file, not read.

    Raises ModelError for a file that holds anything else, and for one that is truncated.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{file} holds more than tensors and is not loaded, as unpickling can run code. "
            "Convert it to .safetensors where you trust it."
        ) from error
    except (OSError, EOFError, RuntimeError) as error:
        raise ModelError(f"{file} is corrupt, truncated or unreadable: {str(error).splitlines()[0]}") from error
