"""Files of latents: safetensors with one tensor, `latents`, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from handheld.files import save_tensors
from handheld.models import LatentStatistics, ModelError

# In the file's metadata: whether the latents are a diffusion model's or a VAE's. Other programs write no such key.
_NORMALISED = "normalised"


@dataclass(frozen=True)
class Latents:
    """What a file of latents holds.

    Attributes:
        values: (N, C, T', H', W') of clips or (N, C, H', W') of images, fp32.
        origin: where they came from, in the writer's words.
        normalised: whether they are as a diffusion model gives them; None where the file does not say.
        name: of the file, for errors.
    """

    values: Tensor
    origin: Mapping[str, str]
    normalised: bool | None
    name: str

    def for_decoder(
        self, statistics: LatentStatistics | None, *, takes_normalised: bool, normalised: bool | None = None
    ) -> Tensor:
        """The latents as a decoder takes them, fp32.

        Args:
            statistics: of the decoder's latents.
            takes_normalised: whether the decoder takes a diffusion model's latents; else plain ones.
            normalised: what the caller says they are; None takes what the file says. Where that is silent too, they
                are what the decoder takes.

        Raises ModelError where they must be converted and nothing is known of how, and where file and caller
        disagree.
        """
        if None not in (normalised, self.normalised) and normalised != self.normalised:
            words = {True: "normalised", False: "plain"}
            assert self.normalised is not None
            assert normalised is not None
            raise ModelError(
                f"{self.name} says that its latents are {words[self.normalised]}, and they are to be taken as "
                f"{words[normalised]}: leave that out."
            )
        given = self.normalised if normalised is None else normalised
        if given in (None, takes_normalised):
            return self.values
        if statistics is None:
            has, wants = ("normalised", "plain") if given else ("plain", "normalised")
            raise ModelError(
                f"{self.name} holds {has} latents, this decoder takes {wants} ones, and how one becomes the other "
                "is not known: its checkpoint has no latent statistics. Give latents as it takes them."
            )
        return statistics.denormalise(self.values) if given else statistics.normalise(self.values)


def write_latents(path: Path, latents: np.ndarray, origin: dict[str, str]) -> None:
    """Write plain latents (N, C, ...) float32, whole or not at all. Raises ModelError where that fails."""
    save_tensors(path, {"latents": latents}, ModelError, metadata={**origin, _NORMALISED: "no"})


def read_latents(path: Path) -> Latents:
    """Read a file of latents in fp32, fp16 or bf16. Raises ModelError for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            # Programs that are not ours name the tensor as they like; one alone can be meant only.
            name = "latents" if "latents" in names else names[0] if len(names) == 1 else None
            if name is None:
                raise ModelError(
                    f'{path} holds {", ".join(names) or "no tensors"}; a tensor "latents" is needed, '
                    "as handheld encode writes it."
                )
            latents, origin = file.get_tensor(name), file.metadata() or {}
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist. handheld encode makes such a file from a video.") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a whole safetensors file ({error}). handheld encode makes one from a video."
        ) from error
    known = (torch.float32, torch.float16, torch.bfloat16)
    if latents.ndim not in (4, 5) or latents.dtype not in known or 0 in latents.shape:
        raise ModelError(
            f"{path}: latents are {str(latents.dtype).removeprefix('torch.')} of shape {tuple(latents.shape)}; "
            "float32, float16 or bfloat16 of shape (clips, channels, time, height, width), or (images, channels, "
            "height, width), is needed."
        )
    if not torch.isfinite(latents).all():
        raise ModelError(f"{path} holds NaN or infinity: what made these latents failed.")
    said = origin.get(_NORMALISED)
    return Latents(latents.float(), origin, None if said is None else said == "yes", path.name)
