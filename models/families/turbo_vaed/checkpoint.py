"""Reading and writing decoder weights by their released names, strictly and without unpickling."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from handheld.files import save_tensors, write_text

from ...errors import ModelError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_PICKLED = {".pth", ".pt", ".ckpt", ".bin"}

# What a released checkpoint holds beside the decoder: heads that only training uses, and latent statistics
# that a diffusion model reads (`decode` takes unnormalised latents).
_LEFT_OUT = ("aligned_feature_projection_heads.", "latents_mean", "latents_std")


def locate(source: str | Path, subfolder: str | None, local_files_only: bool) -> tuple[Path, Path | None]:
    """Find (weights file, config file or None) of a folder, a checkpoint file or a hub id."""
    path = Path(source)
    if path.is_file():
        config = path.parent / CONFIG_NAME
        return path, config if config.is_file() else None
    if not path.exists():
        path = _download(str(source), subfolder, local_files_only)
    if subfolder:
        path = path / subfolder
    wanted = [path / CONFIG_NAME, path / WEIGHTS_NAME]
    missing = [file.name for file in wanted if not file.is_file()]
    if missing:
        raise ModelError(f"{path} has no {' and no '.join(missing)}: a folder from save_pretrained is needed.")
    return wanted[1], wanted[0]


def _download(repo_id: str, subfolder: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [prefix + CONFIG_NAME, prefix + WEIGHTS_NAME]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=wanted, local_files_only=local_files_only))
    except HFValidationError as error:
        raise ModelError(f"{repo_id} is neither a file or folder here nor a hub id (owner/name).") from error
    except Exception as error:  # the hub client raises many unrelated types for "not there" and "no network"
        raise ModelError(
            f"{repo_id} is not a file or folder here, and the hub did not give it "
            f"({type(error).__name__}). Download it elsewhere and pass the local folder."
        ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file by their name in the bare decoder.

    Takes a bare decoder dict, a whole autoencoder's (`decoder.*`), and the released trainer's file
    (`ema_state_dict` if it has any, else `state_dict.gen_model`; `module.` prefixes of parallel training).
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
    out = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if not name.startswith(_LEFT_OUT):
            out[name.removeprefix("decoder.")] = value
    return out


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights of a checkpoint file into `model` (parameters may be on the meta device), in fp32.

    Raises ModelError listing every missing and unmatched name and every shape that differs.
    """
    state = read_state_dict(path)
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
            faults.append(f"  {title} ({len(names)}): {', '.join(names)}")
    if faults:
        raise ModelError(
            f"{path} does not hold the weights of this configuration:\n"
            + "\n".join(faults)
            + "\nCheck that checkpoint and configuration belong together."
        )
    model.load_state_dict({name: state[name].float() for name in own}, assign=True)


def save_folder(model: nn.Module, config_json: str, folder: Path) -> None:
    """Write the pair that `locate` finds; each file appears whole or not at all."""
    state = {f"decoder.{name}": value.detach() for name, value in model.state_dict().items()}
    save_tensors(folder / WEIGHTS_NAME, state, ModelError, metadata={"format": "pt"}, make_folder=True)
    write_text(folder / CONFIG_NAME, config_json, ModelError)
