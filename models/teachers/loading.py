"""Checkpoints of teachers: finding, checking and loading them. Nothing is ever unpickled."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..hub import fetch, is_hub_id
from ..latents import LatentSpec
from ..reading import PICKLED, open_safetensors, read_json, weight_files
from ._diffusers import quiet, vae_class
from .base import Teacher, TeacherInfo

log = logging.getLogger(__name__)

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = _WEIGHTS + ".index.json"
_SHARDS = "diffusion_pytorch_model-*.safetensors"
# Larger than the compression of any released video VAE, and a multiple of all of them.
_PROBE_SIZE = 256


def load(info: TeacherInfo, source: str | Path, dtype: torch.dtype, names: Mapping[str, str]) -> Teacher:
    """Load a teacher. `names` says which teacher fits which diffusers class, for the message of a mismatch."""
    folder = _find(info, source)
    config = _read_config(folder, info, names)
    cls = vae_class(info.diffusers_class)
    with quiet("diffusers", level=logging.CRITICAL):
        spec = _spec_of_config(cls, config, folder, info)
        # A hub's weights are fetched only now that the configuration is known to be usable.
        folder = _find(info, source, weights=True)
        files = _weight_files(folder)
        vae = _load_weights(cls, folder, dtype)
    return Teacher(info, whole_clips(vae), spec, str(source), files)


def whole_clips(vae: Any) -> Any:
    """Switch off whatever splits a clip into blended tiles: a teacher's output must not depend on its size."""
    for switch in ("use_slicing", "use_tiling", "use_framewise_encoding", "use_framewise_decoding"):
        if hasattr(vae, switch):
            setattr(vae, switch, False)
    return vae


@torch.no_grad()
def measure_spec(info: TeacherInfo, vae: Any) -> LatentSpec:
    """The latent space of a VAE, from the shapes it gives. Meant for a VAE on the meta device, where only
    shapes are computed. Raises ModelError if encoder and decoder disagree."""
    decode = info.decoder(vae)

    def encode(frames: Tensor) -> Tensor:
        return vae.encode(frames).latent_dist.mode()

    image = torch.empty(1, 3, 1, _PROBE_SIZE, _PROBE_SIZE, device=vae.device)
    latents = encode(image)
    channels, side = latents.shape[1], latents.shape[-1]
    clip = decode(latents.expand(-1, -1, 2, -1, -1))
    shapes = [tuple(x.shape) for x in (latents, decode(latents), encode(clip[:, :3]), clip)]
    expected = [
        (1, channels, 1, side, side),
        tuple(image.shape),
        (1, channels, 2, side, side),
        (1, 3, clip.shape[2], _PROBE_SIZE, _PROBE_SIZE),
    ]
    if shapes != expected or _PROBE_SIZE % side:
        raise ModelError(
            f"its encoder and its decoder disagree: one frame of {_PROBE_SIZE}x{_PROBE_SIZE} encodes to "
            f"{shapes[0]} and decodes to {shapes[1]}; two latent frames decode to {shapes[3]}, which encode "
            f"to {shapes[2]}"
        )
    return LatentSpec(channels=channels, spatial=_PROBE_SIZE // side, temporal=clip.shape[2] - 1)


def _find(info: TeacherInfo, source: str | Path, *, weights: bool = False) -> Path:
    """The folder with the VAE's config.json: `source`, its `vae` subfolder, or the cache of a hub id."""
    root = Path(source).expanduser()
    if not root.is_dir():
        if isinstance(source, str) and is_hub_id(source):
            names = [_WEIGHTS, _INDEX, _SHARDS] if weights else ["config.json"]
            patterns = [*names, *(f"vae/{name}" for name in names)]
            root = fetch(source, patterns, f"config.json and {_WEIGHTS}")
        elif source == info.default_source:
            raise ModelError(
                f"The weights of teacher {info.name} are missing from this installation (no folder {root}). "
                "Install handheld again, or give a folder with such a checkpoint."
            )
        else:
            fault = "is a file" if root.exists() else "does not exist"
            raise ModelError(
                f"{source} {fault}. A teacher is a folder with config.json and {_WEIGHTS}, a pipeline folder "
                f"with those in `vae`, or a hub id such as Lightricks/LTX-Video."
            )
    for folder in (root / "vae", root):
        if (folder / "config.json").is_file():
            return folder
    raise ModelError(
        f"{source} has no config.json, nor has its subfolder `vae`. A teacher is a folder as diffusers' "
        f"save_pretrained writes it: config.json and {_WEIGHTS}."
    )


def _read_config(folder: Path, info: TeacherInfo, names: Mapping[str, str]) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    given = str(config.get("_class_name"))
    if given != info.diffusers_class:
        fits = f"Use teacher `{names[given]}`." if given in names else f"Teachers: {', '.join(names.values())}."
        raise ModelError(
            f"{folder / 'config.json'} is of class {given}, and teacher {info.name} needs "
            f"{info.diffusers_class}. {fits}"
        )
    if "quantization_config" in config:
        raise ModelError(f"{folder} is a quantised checkpoint; a teacher is loaded from the unquantised one.")
    return config


def _spec_of_config(cls: Any, config: dict[str, Any], folder: Path, info: TeacherInfo) -> LatentSpec:
    known = inspect.signature(cls.__init__).parameters
    unknown = [key for key in config if not key.startswith("_") and key not in known]
    if unknown:
        # Released configurations hold such keys: Wan 2.2 says clip_output, which diffusers has never read.
        log.warning("%s: this diffusers ignores the keys %s", folder / "config.json", ", ".join(unknown))
    try:
        with torch.device("meta"):
            vae = cls.from_config(config)
        return measure_spec(info, vae.eval())
    except Exception as error:  # diffusers asserts, indexes and divides by whatever the file says
        raise ModelError(
            f"{folder / 'config.json'} does not describe a usable {info.diffusers_class}: {error}."
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, each of them whole."""
    files = weight_files(folder, _WEIGHTS)
    for file in files:
        if not file.is_file():
            pickled = sorted(x.name for x in folder.iterdir() if x.suffix in PICKLED)
            hint = f" {', '.join(pickled)} would have to be unpickled: convert to safetensors." if pickled else ""
            raise ModelError(f"{folder} has no {file.name}.{hint}")
        with open_safetensors(file):
            pass
    return files


def _load_weights(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    try:
        vae, found = cls.from_pretrained(
            folder,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True,  # so that they are all reported, below
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"The weights in {folder} cannot be loaded: {error}.") from error
    faults = {
        "missing": sorted(found["missing_keys"]),
        "not of this model": sorted(found["unexpected_keys"]),
        "of another shape": sorted(
            f"{name} {tuple(given)} for {tuple(needed)}" for name, given, needed in found["mismatched_keys"]
        ),
    }
    if any(faults.values()):
        raise ModelError(
            f"The weights in {folder} do not fit its config.json: "
            + "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in faults.items() if names)
            + "."
        )
    return vae


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
