"""What a teacher is: a frozen video VAE whose latents a student learns to decode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..latents import LatentSpec
from ..statistics import LatentStatistics

# All families name these blocks alike. `{i}` counts the blocks that the loaded checkpoint has.
STANDARD_TAPS: Mapping[str, str] = {"mid_block": "decoder.mid_block", "up_block_{i}": "decoder.up_blocks.{i}"}


class ClipDecoder(nn.Module):
    """Latents (N, C, T, h, w) to frames (N, 3, F, H, W) of a whole clip, sharing a VAE's decoder weights.

    A subclass per family takes a VAE and defines `forward`. A plain module of tensors in and tensors
    out: `torch.export` and `torch.onnx.export(dynamo=True)` take it at a fixed latent shape.
    """

    decoder: nn.Module

    def chunk_by_chunk(self, latents: Tensor) -> Tensor:
        """As `forward`, in the memory of one chunk, where the family has chunks. `Teacher` decodes with it."""
        return self(latents)

    def whole_clip(self, chunks: list[Tensor], latent_frames: int) -> Tensor:
        """One NCTHW tensor from what a module gave chunk by chunk over a clip of `latent_frames`."""
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=2)


@dataclass(frozen=True)
class TeacherInfo:
    """What is known of a teacher before it is loaded.

    Attributes:
        name: the name users type.
        diffusers_class: the class that `config.json` must name.
        default_source: hub id, or the folder inside this package.
        licence: of the released weights.
        licence_url: where its text is.
        spec: latent space of the released weights. A loaded teacher has its own `spec`, measured on its
            configuration, since a smaller checkpoint may compress otherwise.
        scaling: how a diffusion model normalises the latents z. For information only: `Teacher.encode`
            returns z itself, which is what decoders take.
        decoder: makes the clip decoder of a loaded VAE.
        taps: feature names to module paths in the clip decoder.
    """

    name: str
    diffusers_class: str
    default_source: str | Path
    licence: str
    licence_url: str | None
    spec: LatentSpec
    scaling: str
    decoder: Callable[[Any], ClipDecoder]
    taps: Mapping[str, str]


class Teacher(nn.Module):
    """A frozen teacher. Made by `load_teacher`.

    Frames are RGB (N, 3, F, H, W), nominally in [-1, 1]; latents are (N, C, T, h, w), the mean of the
    encoder's posterior, not normalised for a diffusion model. Everything runs without gradients and in
    evaluation mode; `train()` has no effect.

    Attributes:
        info: the record of the family.
        spec: latent space of this checkpoint.
        source: the hub id or folder it was loaded from.
    """

    def __init__(
        self, info: TeacherInfo, vae: Any, spec: LatentSpec, source: str, weight_files: list[Path]
    ) -> None:
        super().__init__()
        self.info = info
        self.spec = spec
        self.source = source
        self._weight_files = weight_files
        self.vae: Any = vae.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode: a teacher is frozen."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    @cached_property
    def taps(self) -> dict[str, str]:
        """Names of the features that this checkpoint has, to module paths in `decoder_module()`."""
        found: dict[str, str] = {}
        for name, path in self.info.taps.items():
            if "{i}" in path:
                blocks = self.vae.get_submodule(path.removesuffix(".{i}"))
                found |= {name.format(i=i): path.format(i=i) for i in range(len(blocks))}
            else:
                found[name] = path
        return found

    @cached_property
    def statistics(self) -> LatentStatistics | None:
        """How a diffusion model normalises this VAE's latents; None where it takes them as they are."""
        found = dict(self.vae.config)
        for name in ("latents_mean", "latents_std"):
            # LTX keeps them with the weights.
            if isinstance(stored := getattr(self.vae, name, None), Tensor):
                found[name] = stored.tolist()
        return LatentStatistics.from_config(found)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weight file; of a sharded checkpoint, of its files one after the other by name."""
        digest = hashlib.sha256()
        for file in self._weight_files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents of a clip. Raises ModelError for a shape or clip length that the latent space lacks."""
        self._check(frames, "frames", channels=3)
        _, _, count, height, width = frames.shape
        self.spec.latent_shape(frames=count, height=height, width=width)
        return self.vae.encode(frames).latent_dist.mode()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Frames of a whole clip, not clamped unless the family's decoder does. Raises ModelError for a shape
        that the latent space lacks."""
        self._check(latents, "latents", channels=self.spec.channels)
        return self.decoder_module().chunk_by_chunk(latents)

    @torch.no_grad()
    def decode_with_features(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Frames as `decode` gives them, and each tap's output as one NCTHW tensor of the whole clip."""
        self._check(latents, "latents", channels=self.spec.channels)
        decoder = self.decoder_module()
        chunks: dict[str, list[Tensor]] = {tap: [] for tap in self.taps}

        def record(tap: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
                # Modules that keep a cache return it beside their output.
                chunks[tap].append(output[0] if isinstance(output, tuple) else output)

            return hook

        handles = [
            decoder.get_submodule(path).register_forward_hook(record(tap)) for tap, path in self.taps.items()
        ]
        try:
            frames = decoder.chunk_by_chunk(latents)
        finally:
            for handle in handles:
                handle.remove()
        return frames, {tap: decoder.whole_clip(parts, latents.shape[2]) for tap, parts in chunks.items()}

    def decoder_module(self) -> ClipDecoder:
        """Latents to frames as a plain module for export, with this teacher's weights (shared, not copied).

        LTX, Hunyuan and Wan decode a clip in one piece, and Wan's declares its layers, so that it streams.
        CogVideoX decodes in chunks of two latent frames that hand caches on: its exported graph repeats the
        decoder once per chunk, so export it at short clips.
        """
        return self.info.decoder(self.vae).eval()

    def _check(self, tensor: Tensor, what: str, channels: int) -> None:
        if tensor.ndim != 5 or tensor.shape[1] != channels or 0 in tensor.shape:
            raise ModelError(
                f"{what} of shape {tuple(tensor.shape)} given; teacher {self.info.name} takes "
                f"(batch, {channels}, time, height, width), none of them empty."
            )
        if tensor.dtype != self.dtype:
            raise ModelError(
                f"{what} of {tensor.dtype} given to teacher {self.info.name}, which computes in {self.dtype}: "
                "convert them, or load the teacher with another dtype."
            )
