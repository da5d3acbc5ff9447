"""How a diffusion model normalises the latents that a VAE's encoder emits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import ModelError


@dataclass(frozen=True)
class LatentStatistics:
    """The affine map between a VAE's latents z and a diffusion model's latents n, per channel.

        n = (z - mean) / std * scaling        z = n / scaling * std + mean

    Diffusers writes it as `scaling_factor`, `shift_factor` (a mean that all channels share), `latents_mean` and
    `latents_std`.

    Attributes:
        mean, std: one value per latent channel, or one for all of them.
        scaling: one value for all channels.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scaling: float = 1.0

    def __post_init__(self) -> None:
        faults = []
        if not self.scaling > 0:
            faults.append(f"scaling is {self.scaling}; a number above 0 is needed")
        if not self.std or not all(value > 0 for value in self.std):
            faults.append("std holds a value that is not above 0")
        if not self.mean or not all(value == value for value in self.mean):
            faults.append("mean holds a value that is no number")
        if len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)):
            faults.append(f"mean has {len(self.mean)} values and std {len(self.std)}")
        if faults:
            raise ModelError("Impossible latent statistics: " + "; ".join(faults) + ".")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LatentStatistics | None:
        """From the keys of a diffusers configuration; None where it has none of them, or they change nothing.

        Raises ModelError for values that are no statistics.
        """
        mean, std = config.get("latents_mean"), config.get("latents_std")
        shift, scaling = config.get("shift_factor"), config.get("scaling_factor")
        try:
            found = cls(
                tuple(map(float, mean)) if mean is not None else (float(shift or 0.0),),
                tuple(map(float, std)) if std is not None else (1.0,),
                1.0 if scaling is None else float(scaling),
            )
        except (TypeError, ValueError) as error:
            raise ModelError(f"The latent statistics of the configuration are no numbers: {error}.") from error
        return None if found.is_identity else found

    @property
    def is_identity(self) -> bool:
        """Whether normalised and plain latents are the same."""
        return self.scaling == 1 and not any(self.mean) and all(value == 1 for value in self.std)

    def normalise(self, latents: Tensor) -> Tensor:
        """Plain latents (N, C, ...) as a diffusion model takes and gives them; computed in fp32."""
        mean, std = self._axes(latents)
        return (latents.float() - mean) / std * self.scaling

    def denormalise(self, latents: Tensor) -> Tensor:
        """A diffusion model's latents (N, C, ...) as the VAE's decoder takes them; computed in fp32."""
        mean, std = self._axes(latents)
        return latents.float() / self.scaling * std + mean

    def check(self, channels: int) -> None:
        """Raises ModelError where there are not as many values as latent channels."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise ModelError(
                    f"The latents' {name} has {len(values)} values; the latents have {channels} channels."
                )

    def _axes(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        self.check(latents.shape[1])
        shape = (1, -1, *(1,) * (latents.ndim - 2))
        return tuple(
            torch.tensor(values, dtype=torch.float32, device=latents.device).reshape(shape)
            for values in (self.mean, self.std)
        )  # type: ignore[return-value]
