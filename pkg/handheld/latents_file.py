"""Files of latents: safetensors with one tensor, `latents`, and where it came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from handheld.files import save_tensors
from handheld.models import ModelError


def write_latents(path: Path, latents: np.ndarray, origin: dict[str, str]) -> None:
    """Write latents (N, C, T', H', W') float32, whole or not at all. Raises ModelError where that fails."""
    save_tensors(path, {"latents": latents}, ModelError, metadata=origin)


def read_latents(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Latents (N, C, T', H', W') as float32, and where they came from. Raises ModelError for anything else."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            if "latents" not in names:
                raise ModelError(
                    f'{path} holds {", ".join(names) or "no tensors"}; a tensor "latents" is needed, '
                    "as handheld encode writes it."
                )
            latents, origin = file.get_tensor("latents"), file.metadata() or {}
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist. handheld encode makes such a file from a video.") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a whole safetensors file ({error}). handheld encode makes one from a video."
        ) from error
    if latents.ndim != 5 or latents.dtype not in (np.float32, np.float16) or 0 in latents.shape:
        raise ModelError(
            f"{path}: latents are {latents.dtype} of shape {latents.shape}; "
            "float32 or float16 of shape (clips, channels, time, height, width) is needed."
        )
    return latents.astype(np.float32), origin
