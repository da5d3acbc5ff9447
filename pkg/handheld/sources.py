"""What `export` can be pointed at: a run folder, a preset, a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handheld.distill import read_run
from handheld.models import PRESETS, LatentSpec, ModelError, TurboVAEDecoder


@dataclass(frozen=True)
class Source:
    """A decoder to export, and what is known of it.

    Attributes:
        name: for people.
        model: in eval mode, fp32.
        provenance: for the manifest.
        held_out: real latents (N, C, T', H', W') that the run kept, if it is a run.
    """

    name: str
    model: TurboVAEDecoder
    provenance: dict[str, Any] = field(default_factory=dict)
    held_out: Tensor | None = None

    @property
    def spec(self) -> LatentSpec:
        return self.model.spec

    def example(self, frames: int | None, height: int | None, width: int | None) -> tuple[Tensor, str]:
        """Latents of one clip for the golden tensors, and a word on where they come from.

        Sizes default to those of the run's held-out clips, else to 9 frames (or the nearest length that the
        latent space has) of 256x256. A run's own latents are used where the sizes are theirs; elsewhere
        they are random, with the held-out latents' mean and spread if there are any.
        """
        spec = self.spec
        default = (9, 256, 256)
        if self.held_out is not None:
            _, _, t, h, w = self.held_out.shape
            default = (spec.frames(t), h * spec.spatial, w * spec.spatial)
        elif not spec.first_frame_alone:
            default = (2 * spec.temporal, 256, 256)
        given = (frames, height, width)
        clip = [own if asked is None else asked for asked, own in zip(given, default)]
        shape = spec.latent_shape(frames=clip[0], height=clip[1], width=clip[2])
        if self.held_out is not None and tuple(self.held_out.shape[1:]) == shape[1:]:
            return self.held_out[:1].contiguous(), "a held-out clip of the run"
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if self.held_out is None:
            return latents, "standard normal, seed 0"
        axes = (0, 2, 3, 4)
        mean, std = (f(self.held_out, dim=axes, keepdim=True) for f in (torch.mean, torch.std))
        return latents * std + mean, "normal with the held-out latents' mean and spread, seed 0"


def open_source(
    source: str, *, config: str | None = None, subfolder: str | None = None, causal: bool = False, seed: int = 0
) -> Source:
    """Resolve what the user named.

    Args:
        source: a preset (random weights), a run folder, a checkpoint file, a folder from `save_pretrained`
            or a hub id of one. A file or folder of the same name as a preset must be written as a path (`./ltx`).
        config: preset or JSON file, for a checkpoint without a configuration beside it.
        subfolder: inside a folder or hub id.
        causal: with a preset, its causal form.
        seed: of a preset's random weights.

    Raises ModelError or DistillError saying what was looked for.
    """
    path = Path(source)
    if source in PRESETS:
        torch.manual_seed(seed)
        provenance = {"source": "preset", "preset": source, "causal": causal, "weights": "random", "seed": seed}
        return Source(source, TurboVAEDecoder.from_preset(source, causal=causal), provenance)
    if causal:
        raise ModelError("--causal goes with a preset; a checkpoint's configuration says whether it is causal.")
    if (path / "run.json").is_file() or (path / "recipe.yaml").is_file():
        run = read_run(path)
        provenance = {
            "source": "run",
            "run": str(path.resolve()),
            "teacher": run.facts["teacher"],
            "student": run.facts["student"],
            "seed": run.facts["seed"],
            "metrics": run.facts["metrics"],
        }
        model = TurboVAEDecoder.from_pretrained(run.student)
        return Source(path.resolve().name, model, provenance, run.load_held_out()["latents"])
    if not path.exists() and "/" not in source:
        raise ModelError(
            f"{source} is no preset ({', '.join(PRESETS)}), and no run folder or checkpoint of that name is here."
        )
    model = TurboVAEDecoder.from_pretrained(source, config=config, subfolder=subfolder)
    return Source(path.stem, model, {"source": "checkpoint", "checkpoint": source})
