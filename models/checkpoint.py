"""Reading and writing decoder weights by their released names, strictly and without unpickling."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from handheld.files import save_tensors, write_text

from . import hub
from .errors import ModelError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_INDEX_NAME = WEIGHTS_NAME + ".index.json"
_PICKLED = {".pth", ".pt", ".ckpt", ".bin"}

# Where a pipeline of diffusers keeps its autoencoder.
_PIPELINE_FOLDER = "vae"

# At most so many names of tensors are listed in an error.
_MOST_NAMES = 8


def locate(source: str | Path, subfolder: str | None, local_files_only: bool) -> tuple[list[Path], Path | None]:
    """Find (weight files, configuration file or None) of a folder, a checkpoint file or a hub id.

    A folder of a whole pipeline has them in its subfolder `vae`.
    """
    path = Path(source)
    if path.is_file():
        config = path.parent / CONFIG_NAME
        return [path], config if config.is_file() else None
    if not path.exists():
        path = _download(str(source), subfolder, local_files_only)
    if subfolder:
        path = path / subfolder
    if not (path / CONFIG_NAME).is_file() and (path / _PIPELINE_FOLDER / CONFIG_NAME).is_file():
        path = path / _PIPELINE_FOLDER
    if not (path / CONFIG_NAME).is_file():
        raise ModelError(
            f"{path} has no {CONFIG_NAME}: a folder as save_pretrained writes it is needed, with {CONFIG_NAME} and "
            f"{WEIGHTS_NAME}, or the checkpoint file itself."
        )
    return _weight_files(path), path / CONFIG_NAME


def _weight_files(folder: Path) -> list[Path]:
    if not (folder / _INDEX_NAME).is_file():
        files = [folder / WEIGHTS_NAME]
    else:
        table = read_json(folder / _INDEX_NAME).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise ModelError(f"{folder / _INDEX_NAME} has no weight_map, the table of the checkpoint's parts.")
        files = [folder / str(name) for name in sorted(set(table.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(f"{folder} has no {', '.join(missing)}: the weights are missing. Download them again.")
    return files


def _download(repo_id: str, subfolder: str | None, local_files_only: bool) -> Path:
    prefixes = [f"{subfolder}/"] if subfolder else ["", f"{_PIPELINE_FOLDER}/"]
    names = (CONFIG_NAME, WEIGHTS_NAME, _INDEX_NAME, "diffusion_pytorch_model-*.safetensors")
    patterns = [prefix + name for prefix in prefixes for name in names]
    return hub.fetch(repo_id, patterns, f"{CONFIG_NAME} and {WEIGHTS_NAME}", local_files_only=local_files_only)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError naming the file and what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not a readable JSON configuration: {error}.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds a JSON {type(data).__name__}; an object of settings is needed.")
    return data


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file by their names in it.

    Takes a dict of tensors, and the files of trainers: `ema_state_dict` if it holds any, else
    `state_dict.gen_model`, else `state_dict`. The prefix `module.` of parallel training is taken off.

    Raises ModelError for an unreadable file and for one that would need arbitrary unpickling.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        elif path.suffix in _PICKLED:
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise ModelError(f"{path}: unknown kind {path.suffix!r}; .safetensors, .pth and .ckpt are read.")
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        raise ModelError(f"{path} is corrupt, truncated or unreadable: {str(error).splitlines()[0]}") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors and is not loaded, as unpickling can run code. "
            "Convert it to .safetensors where you trust it."
        ) from error

    if isinstance(state, Mapping) and ("ema_state_dict" in state or "state_dict" in state):
        nested = state.get("state_dict", {})
        state = state.get("ema_state_dict") or nested.get("gen_model", nested)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} is not a dict of tensors by name, which a state dict is.")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_weights(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Put weights by their names into `model`, whose parameters may be on the meta device, in fp32.

    Args:
        where: what holds them, for errors.

    Raises ModelError with every missing and unmatched name and every shape that differs, and for weights that are
    not finite.
    """
    own = model.state_dict()
    faults = []
    missing = sorted(own.keys() - state.keys())
    unmatched = sorted(state.keys() - own.keys())
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    for title, names in (("missing", missing), ("unmatched", unmatched), ("wrong shape", sorted(wrong))):
        if names:
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            faults.append(f"  {title} ({len(names)}): {', '.join(names[:_MOST_NAMES])}{more}")
    if faults:
        raise ModelError(
            f"{where} does not hold the weights of this configuration:\n"
            + "\n".join(faults)
            + "\nCheck that checkpoint and configuration belong together."
        )
    if broken := sorted(name for name, value in state.items() if not torch.isfinite(value).all()):
        raise ModelError(
            f"{where} has NaN or infinity in {len(broken)} tensors, among them {', '.join(broken[:_MOST_NAMES])}: "
            "the training that wrote it failed. Take an earlier checkpoint."
        )
    model.load_state_dict({name: state[name].float() for name in own}, assign=True)


def save_folder(
    model: nn.Module, config_json: str, folder: Path, extra: Mapping[str, Tensor], prefix: str = "decoder."
) -> None:
    """Write the pair that `locate` finds; each file appears whole or not at all.

    Args:
        extra: tensors beside the weights.
        prefix: what the weights' names get before the model's own.
    """
    state = {f"{prefix}{name}": value.detach() for name, value in model.state_dict().items()} | dict(extra)
    save_tensors(folder / WEIGHTS_NAME, state, ModelError, metadata={"format": "pt"}, make_folder=True)
    write_text(folder / CONFIG_NAME, config_json, ModelError)
