"""What can be exported: a decoder, latents to try it on, and what is known of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from handheld.models import LatentSpec, LatentStatistics, ModelError

# Ranges settle after a few clips: the tiny student had 0.1 dB more with four than with one.
_MOST_CALIBRATION_CLIPS = 8

_DEFAULT_SIZE = 256
_DEFAULT_FRAMES = 9


@dataclass(frozen=True)
class Source:
    """A decoder to export.

    Attributes:
        name: for people.
        model: latents (N, C, T', H', W') to frames (N, 3, T, H, W), or (N, C, H', W') to images; in eval
            mode, fp32.
        provenance: where the weights come from, for the manifest.
        spec: the latent space. None where nothing but the example's shape is known.
        value_range: nominal range of the pictures.
        statistics: how a diffusion model normalises the latents. None where the checkpoint does not say.
        latents: real latents, in the layout that the model takes, or an example that the user gave.
        latents_name: what one of them is called.
        latents_are_real: whether an encoder made them.
    """

    name: str
    model: nn.Module
    provenance: Mapping[str, Any] = field(default_factory=dict)
    spec: LatentSpec | None = None
    value_range: tuple[float, float] = (-1.0, 1.0)
    statistics: LatentStatistics | None = None
    latents: Tensor | None = None
    latents_name: str = "held-out clip of the run"
    latents_are_real: bool = True

    @property
    def layout(self) -> str:
        """The axes of latents and pictures: NCTHW of clips, NCHW of images."""
        if self.spec is not None:
            return self.spec.layout
        return "NCHW" if self.latents is not None and self.latents.ndim == 4 else "NCTHW"

    @property
    def frame_rule(self) -> str:
        """The clip lengths that there are: `8k+1`, `4k`; `any` where nothing is known."""
        return self.spec.frame_rule if self.spec is not None else "any"

    def describe(self, latents: Tensor) -> str:
        """What latents of a shape decode to, for people: `9 frames of 256x256`."""
        if self.spec is None:
            return "pictures of a size that only the model knows"
        _, _, *time, h, w = self.spec.decoded_shape(tuple(latents.shape))
        return f"{f'{time[0]} frames of ' if time else ''}{h}x{w}"

    def example(
        self, frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> tuple[Tensor, str]:
        """Latents of one clip or image for the golden tensors, and a word on where they come from.

        Sizes default to those of `latents`, else to 9 frames (or the nearest length that the latent space has) of
        256x256. `latents` are used, cropped, where they are large enough. Elsewhere the example is random, with
        their mean and spread if there are any.

        Raises ModelError for a size that the latent space lacks, or that cannot be told without one.
        """
        if self.spec is None:
            return self._only_example((frames, height, width))
        spec = self.spec
        shape = spec.latent_shape(**self._size(spec, frames, height, width))
        if clips := self._real(shape):
            return clips[0], f"a {self.latents_name}" if self.latents_are_real else self.latents_name
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if self.latents is None:
            return latents, "standard normal, seed 0"
        axes = [axis for axis in range(latents.ndim) if axis != 1]
        mean, std = (f(self.latents, dim=axes, keepdim=True) for f in (torch.mean, torch.std))
        return latents * std + mean, "normal with the real latents' mean and spread, seed 0"

    def calibration(self, example: Tensor) -> tuple[tuple[Tensor, ...], str]:
        """Latents of the example's shape to calibrate activations on, and a word on what they are.

        Real clips, cropped, without the first one: it is the golden input, which verification should see for
        the first time. Where there are none, or they are too small: the example.
        """
        clips = self._real(tuple(example.shape))
        if not clips or not self.latents_are_real:
            return (example,), "the example alone: calibrate on real latents with --calibration FILE"
        chosen = clips[1 : 1 + _MOST_CALIBRATION_CLIPS] or clips
        return chosen, f"{len(chosen)} {self.latents_name}".replace("clip", "clips" if len(chosen) > 1 else "clip")

    def with_latents(self, latents: Tensor, name: str) -> Source:
        """This source with real latents, in fp32, in place of its own; `name` is what one of them is called.

        Raises ModelError for latents of another space.
        """
        try:
            if self.spec is not None:
                self.spec.check(latents)
            elif self.latents is not None and latents.shape[1:2] != self.latents.shape[1:2]:
                raise ModelError(f"they have shape {tuple(latents.shape)}; it takes {tuple(self.latents.shape)}.")
        except ModelError as error:
            raise ModelError(f"{name} does not fit {self.name}: {error}") from None
        return replace(self, latents=latents, latents_name=name, latents_are_real=True)

    def _only_example(self, asked: tuple[int | None, ...]) -> tuple[Tensor, str]:
        if self.latents is None:
            raise ModelError(
                f"{self.name} does not say which latents it takes: give an example (example=), or give the "
                "module an attribute `spec`, a handheld.LatentSpec."
            )
        if any(size is not None for size in asked):
            raise ModelError(
                f"{self.name} is known by an example of shape {tuple(self.latents.shape)} alone, so there is no "
                "other size: leave height, width and frames out, or give the module a `spec`."
            )
        return self.latents[:1].contiguous(), self.latents_name

    def _size(self, spec: LatentSpec, frames: int | None, height: int | None, width: int | None) -> dict[str, int]:
        default = (_DEFAULT_FRAMES, _DEFAULT_SIZE, _DEFAULT_SIZE)
        if self.latents is not None:
            _, _, *time, h, w = spec.decoded_shape(tuple(self.latents.shape))
            default = (time[0] if time else 1, h, w)
        elif spec.image:
            default = (1, _DEFAULT_SIZE, _DEFAULT_SIZE)
        elif not spec.first_frame_alone:
            default = (2 * spec.temporal, _DEFAULT_SIZE, _DEFAULT_SIZE)
        asked = zip(("frames", "height", "width"), (frames, height, width), default)
        return {name: own if given is None else given for name, given, own in asked}

    def _real(self, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Latents (1, ...) of a shape: first frames, cropped at the centre. None where there are none as large."""
        held = self.latents
        if held is None or any(has < wants for has, wants in zip(held.shape[1:], shape[1:])):
            return ()
        _, _, *time, h, w = shape
        top, left = (held.shape[-2] - h) // 2, (held.shape[-1] - w) // 2
        window = (*(slice(t) for t in time), slice(top, top + h), slice(left, left + w))
        crops = held[(slice(None), slice(None), *window)]
        return tuple(clip[None].contiguous() for clip in crops)


def source_of(
    module: nn.Module, name: str, provenance: Mapping[str, Any], *, example: Tensor | None = None
) -> Source:
    """A module as a source. What it says of itself (`spec`, `value_range`, `statistics`) is taken from it.

    Args:
        example: latents of one clip or image. A module without `spec` needs them.
    """
    spec = getattr(module, "spec", None)
    found = Source(
        name,
        module.eval().float(),
        provenance,
        spec if isinstance(spec, LatentSpec) else None,
        getattr(module, "value_range", (-1.0, 1.0)),
        getattr(module, "statistics", None),
    )
    if example is None:
        return found
    if found.spec is not None:
        found.spec.check(example)
    own: dict[str, Any] = {"latents_name": "the example that was given", "latents_are_real": False}
    return replace(found, latents=example.float(), **own)


def declares_layers(module: nn.Module) -> bool:
    """Whether a module can be exported for streaming."""
    return bool(getattr(module, "streams", False)) and hasattr(module, "layers")
