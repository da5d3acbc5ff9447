"""What every decoder has in common, whatever its architecture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .checkpoint import save_folder
from .errors import ModelError
from .latents import LatentSpec
from .layers import Layer
from .statistics import LatentStatistics
from .streaming import stream_frames


class Decoder(nn.Module):
    """A decoder: latents of a VAE in, pictures out.

    A subclass per family defines `spec` and `forward`. Latents are as the VAE's encoder emits them, not normalised
    for a diffusion model, unless `takes_normalised`; `statistics` says how a diffusion model normalises them.

    Attributes:
        value_range: lowest and highest nominal value of the pictures, RGB. It is no clamp.
        config: of the family; what `save_pretrained` writes.
        stored_statistics: that a checkpoint held beside the weights.
        weights_prefix: what the released names of the decoder's weights have before the decoder's own names.
    """

    weights_prefix: ClassVar[str] = "decoder."
    value_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    config: Any
    stored_statistics: LatentStatistics | None = None

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes."""
        raise NotImplementedError

    @property
    def takes_normalised(self) -> bool:
        """Whether `forward` and `decode` take latents as a diffusion model gives them, instead of the encoder's."""
        return False

    @property
    def statistics(self) -> LatentStatistics | None:
        """How a diffusion model normalises these latents, where checkpoint or configuration say so."""
        return self.stored_statistics

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, C, T', H', W') to frames (N, 3, T, H, W), or (N, C, H', W') to images; nothing is checked."""
        raise NotImplementedError

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode checked latents without gradients.

        Args:
            latents: floating point, not normalised for a diffusion model, in the layout and with the channels of
                `spec`.

        Returns:
            RGB in the same layout, nominally in `value_range`, not clamped.

        Raises:
            ModelError: wrong rank, channels or dtype; the message has the shape given and the one needed.
        """
        self.spec.check(latents)
        return self(latents)

    def decode_with_features(self, latents: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """As `forward`, with the feature maps that distillation aligns, by their names; here there are none."""
        return self(latents), {}

    @property
    def streams(self) -> bool:
        """Whether this decoder declares its layers, so that it decodes clips piece by piece."""
        return type(self).layers is not Decoder.layers

    def layers(self) -> Mapping[str, Layer]:
        """What the decoder computes, layer by layer and in order, by the names of its modules.

        Streaming, the exported segments and their plans follow from it. Raises ModelError where a decoder does not
        declare its layers.
        """
        raise ModelError(
            f"A {type(self).__name__} does not declare its layers, so it decodes whole clips only: leave streaming "
            "out, or define `layers()`."
        )

    def stream(self, latents: Tensor | Iterable[Tensor], *, chunk: int = 1, strips: int = 1) -> Iterator[Tensor]:
        """Decode piece by piece, without gradients, holding a number of frames that no clip length changes.

        The frames are those of `decode` on the whole clip, borders included, causal or not: the same function
        (fp64: within 1e-10), so in any dtype they differ by rounding only. A causal decoder gives all frames of
        a latent frame before it asks for the next one; otherwise frames come as soon as the latents that they
        depend on have arrived, and the last ones at the end.

        In strips, memory is that of one strip of rows, and the time is more: rows between two strips are computed
        for both. The latents are all taken first, each strip goes through the whole clip, and no frame comes
        before the last strip; what the others made waits in a temporary file, which takes
        (strips - 1) / strips of the bytes of all frames.

        Args:
            latents: (N, C, T', H', W') floating point, unnormalised; or an iterable of such chunks of one
                clip, in order, each with any number of frames.
            chunk: latent frames to decode at a time, at most. More takes more memory.
            strips: horizontal strips of each frame to decode one after the other.

        Returns:
            Iterator of frames (N, 3, t, H, W) in order, as soon as they are final; t varies.

        Raises:
            ModelError: wrong rank, channels or dtype, a chunk that does not fit the first one, no chunk at
                all, `chunk` or `strips` below 1, more strips than rows, or a temporary folder that is full.
                What an iterable holds is checked as it arrives.
        """
        return stream_frames(self, latents, chunk, strips)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `diffusion_pytorch_model.safetensors`, with released names, into `folder`."""
        found = self.stored_statistics
        extra = {}
        if found is not None:
            extra = {"latents_mean": torch.tensor(found.mean), "latents_std": torch.tensor(found.std)}
        save_folder(self, self.config.to_json(), Path(folder), extra, self.weights_prefix)


def spec_of(module: nn.Module) -> LatentSpec:
    """The latent space of a decoder, or of any module with a `spec`. Raises ModelError where it has none."""
    spec = getattr(module, "spec", None)
    if not isinstance(spec, LatentSpec):
        raise ModelError(
            f"A {type(module).__name__} does not say which latents it takes: give it an attribute `spec`, a "
            "handheld.LatentSpec."
        )
    return spec
