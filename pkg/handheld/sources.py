"""What `export` can be pointed at: a run folder, a preset, a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handheld.distill import read_run
from handheld.latents_file import read_latents
from handheld.models import PRESETS, LatentSpec, ModelError, TurboVAEDecoder

# Ranges settle after a few clips: the tiny student had 0.1 dB more with four than with one.
_MOST_CALIBRATION_CLIPS = 8


@dataclass(frozen=True)
class Source:
    """A decoder to export, and what is known of it.

    Attributes:
        name: for people.
        model: in eval mode, fp32.
        provenance: for the manifest.
        held_out: real latents (N, C, T', H', W') that the run kept, if it is a run, or of `with_latents`.
        held_out_name: what one of their clips is called.
    """

    name: str
    model: TurboVAEDecoder
    provenance: dict[str, Any] = field(default_factory=dict)
    held_out: Tensor | None = None
    held_out_name: str = "held-out clip of the run"

    @property
    def spec(self) -> LatentSpec:
        return self.model.spec

    def example(self, frames: int | None, height: int | None, width: int | None) -> tuple[Tensor, str]:
        """Latents of one clip for the golden tensors, and a word on where they come from.

        Sizes default to those of the run's held-out clips, else to 9 frames (or the nearest length that the
        latent space has) of 256x256. A run's own latents are used, cropped, where they are large enough;
        elsewhere they are random, with the held-out latents' mean and spread if there are any.
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
        if clips := self._real(shape):
            return clips[0], f"a {self.held_out_name}"
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if self.held_out is None:
            return latents, "standard normal, seed 0"
        axes = (0, 2, 3, 4)
        mean, std = (f(self.held_out, dim=axes, keepdim=True) for f in (torch.mean, torch.std))
        return latents * std + mean, "normal with the held-out latents' mean and spread, seed 0"

    def calibration(self, example: Tensor) -> tuple[tuple[Tensor, ...], str]:
        """Latents of the example's shape to calibrate activations on, and a word on what they are.

        Real clips, cropped, without the first one: it is the golden input, which verification should see for
        the first time. Where there are none, or they are too small: the example.
        """
        clips = self._real(tuple(example.shape))
        if not clips:
            return (example,), "the random example: calibrate on real latents with --calibration FILE"
        chosen = clips[1 : 1 + _MOST_CALIBRATION_CLIPS] or clips
        return chosen, f"{len(chosen)} {self.held_out_name}".replace("clip", "clips" if len(chosen) > 1 else "clip")

    def with_latents(self, path: Path) -> Source:
        """This source with the real latents of a file, as `handheld encode` writes it, in place of a run's.

        Raises ModelError for a file that is none, or holds latents of another space.
        """
        latents, _ = read_latents(path)
        clips = torch.from_numpy(latents)
        try:
            self.spec.check(clips)
        except ModelError as error:
            raise ModelError(f"{path} does not fit {self.name}: {error}") from None
        return replace(self, held_out=clips, held_out_name=f"clip of {path.name}")

    def _real(self, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Real clips (1, C, T', H', W'): their first frames, cropped at the centre. None where they are smaller."""
        if self.held_out is None or any(has < wants for has, wants in zip(self.held_out.shape[1:], shape[1:])):
            return ()
        *_, t, h, w = shape
        top, left = (self.held_out.shape[-2] - h) // 2, (self.held_out.shape[-1] - w) // 2
        crops = self.held_out[:, :, :t, top : top + h, left : left + w]
        return tuple(clip[None].contiguous() for clip in crops)


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
        for option, value in (("--config", config), ("--subfolder", subfolder)):
            if value is not None:
                raise ModelError(
                    f"{option} {value} goes with a checkpoint; {source} is a preset, which has its own. Name the "
                    f"checkpoint in place of {source}, or leave {option} out."
                )
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
