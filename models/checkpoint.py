"""Reading and writing decoder weights by their released names, strictly and without unpickling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from handheld.files import save_tensors, write_text

from . import hub
from .errors import ModelError
from .reading import PICKLED, load_pickled, weight_files

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"

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
    files = weight_files(path, WEIGHTS_NAME)
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(f"{path} has no {', '.join(missing)}: the weights are missing. Download them again.")
    return files, path / CONFIG_NAME


def _download(repo_id: str, subfolder: str | None, local_files_only: bool) -> Path:
    prefixes = [f"{subfolder}/"] if subfolder else ["", f"{_PIPELINE_FOLDER}/"]
    names = (CONFIG_NAME, WEIGHTS_NAME, f"{WEIGHTS_NAME}.index.json", "diffusion_pytorch_model-*.safetensors")
    patterns = [prefix + name for prefix in prefixes for name in names]
    return hub.fetch(repo_id, patterns, f"{CONFIG_NAME} and {WEIGHTS_NAME}", local_files_only=local_files_only)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file by their names in it.

    Takes a dict of tensors, and the files of trainers: `ema_state_dict` if it holds any, else
    `state_dict.gen_model`, else `state_dict`. The prefix `module.` of parallel training is taken off.

    Raises ModelError for an unreadable file and for one that would need arbitrary unpickling.
    """
    if path.suffix in PICKLED:
        state = load_pickled(path)
    elif path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is corrupt, truncated or unreadable: {error}") from error
    else:
        raise ModelError(f"{path}: unknown kind {path.suffix!r}; .safetensors, .pth and .ckpt are read.")
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
