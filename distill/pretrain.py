"""Trains the embedded teacher, encoder and decoder, from nothing.

    python -m handheld.distill.pretrain teacher_embedded --videos FOLDER --held-out FOLDER --out runs/teacher

Loss: L1 + mean squared error to the real frames, and a small penalty on the size of the latents so that their
range stays bounded. Forward passes are in bfloat16 where the CPU has it.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from . import checkpoint
from .data import ClipRule, Span, decode, draw, from_pixels, generator, pixels_of, scan
from .data.videos import Footage, VideoSet
from .errors import DataError, RecipeError
from .loop import Loop, LoopSettings
from .metrics import mean, score
from .progress import LoggedProgress, Progress
from .recipe import LogSection, parse_recipe
from .run_folder import RunFolder
from .schema import above, at_least, between

_HELD_OUT_SIZE, _HELD_OUT_FRAMES, _HELD_OUT_START = 128, 17, 10


@dataclass(frozen=True)
class ModelSection:
    """A small AutoencoderKLLTXVideo: one residual stage each way, patches of 4 (8x8 pixels, 2 frames a cell)."""

    latent_channels: Annotated[int, at_least(1)]
    encoder_width: Annotated[int, at_least(1)]
    latent_width: Annotated[int, at_least(1)]
    encoder_layers: tuple[int, int]
    decoder_layers: tuple[int, int]

    def build(self) -> Any:
        """The VAE with random weights."""
        from diffusers import AutoencoderKLLTXVideo

        return AutoencoderKLLTXVideo(
            latent_channels=self.latent_channels,
            block_out_channels=(self.encoder_width, self.latent_width),
            down_block_types=("LTXVideo095DownBlock3D",) * 2,
            decoder_block_out_channels=(self.latent_width,),
            layers_per_block=self.encoder_layers,
            decoder_layers_per_block=self.decoder_layers,
            spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False),
            downsample_type=("spatiotemporal",),
            upsample_residual=(True,),
            upsample_factor=(2,),
            patch_size=4,
            patch_size_t=1,
        )


@dataclass(frozen=True)
class PretrainData:
    """Which clips are seen.

    Attributes:
        videos: file names in the folder given on the command line.
        frames: of every clip.
        sizes, batches: a size in pixels is drawn for every step, with its number of clips.
        stride: lowest and highest step between frames.
        short_side: frames are shrunk to it.
        max_frames: read of each video.
    """

    videos: tuple[str, ...]
    frames: Annotated[int, at_least(1)]
    sizes: tuple[Annotated[int, at_least(16)], ...]
    batches: tuple[Annotated[int, at_least(1)], ...]
    stride: tuple[int, int]
    short_side: Annotated[int, at_least(16)]
    max_frames: Annotated[int, at_least(1)]

    def check(self):
        if len(self.sizes) != len(self.batches):
            yield "batches", f"must have one entry per size ({len(self.sizes)}), got {len(self.batches)}"


@dataclass(frozen=True)
class PretrainOptim:
    """AdamW with warm-up and a cosine down to 2 % of `lr`; `latent_penalty` weighs the latents' mean square."""

    steps: Annotated[int, at_least(1)]
    lr: Annotated[float, above(0)]
    warmup_steps: Annotated[int, at_least(1)]
    betas: tuple[float, float]
    weight_decay: Annotated[float, at_least(0)]
    eps: Annotated[float, above(0)]
    ema_decay: Annotated[float, between(0, 0.99999)]
    clip_grad_norm: Annotated[float, above(0)]
    latent_penalty: Annotated[float, at_least(0)]


@dataclass(frozen=True)
class PretrainRecipe:
    """Training of a teacher."""

    model: ModelSection
    data: PretrainData
    optim: PretrainOptim
    log: LogSection = field(default_factory=LogSection)
    seed: int = 0
    kind: Literal["pretrain"] = "pretrain"


def batch(footage: Footage, data: PretrainData, seed: int, step: int) -> Tensor:
    """Clips of one step (N, 3, T, S, S) in [-1, 1]; a function of seed and step."""
    rng = generator(seed, step)
    which = int(rng.integers(len(data.sizes)))
    size = data.sizes[which]
    rule = ClipRule(data.frames, size, data.stride, flip=True, zoom=True)
    # Longer videos weigh more, but not in proportion: many of them hardly move.
    weights = np.sqrt([min(len(array), 200) for array in footage.arrays])
    clips = []
    for _ in range(data.batches[which]):
        video = int(rng.choice(len(footage.arrays), p=weights / weights.sum()))
        span = Span(video, 0, len(footage.arrays[video]))
        clip = from_pixels(pixels_of(footage, draw(rng, footage, [span], rule), frames=data.frames, crop=size))
        clips.append(augment(clip, rng))
    return torch.stack(clips)


def augment(clip: Tensor, rng: np.random.Generator) -> Tensor:
    """Reverse, turn and recolour a clip (3, T, H, W): there are few videos, and their colours must not matter."""
    if rng.random() < 0.25:
        clip = clip.flip(1)
    if rng.random() < 0.25:
        clip = clip.transpose(-1, -2)
    if rng.random() < 0.3:
        clip = clip[torch.from_numpy(rng.permutation(3))]
    if rng.random() < 0.1:
        clip = -clip
    if rng.random() < 0.3:
        clip = ((clip + rng.uniform(-0.2, 0.2)) * rng.uniform(0.7, 1.2)).clamp(-1, 1)
    return clip


class Pretrainer(Loop[Any]):
    """Trains a VAE on clips of real video.

    Args:
        held_out: clips (1, 3, T, H, W) in [-1, 1] that it is scored on.
        run: the folder for metrics and checkpoint.
        data: fingerprint of the videos.
    """

    def __init__(
        self,
        model: Any,
        recipe: PretrainRecipe,
        footage: Footage,
        held_out: Sequence[Tensor],
        run: RunFolder,
        progress: Progress,
        data: str,
    ) -> None:
        optim = recipe.optim
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, eps=optim.eps
        )
        settings = LoopSettings(
            steps=optim.steps,
            rate=lambda step: learning_rate(optim, step),
            ema_decay=optim.ema_decay,
            clip_grad_norm=optim.clip_grad_norm,
            accumulate=1,
            eval_every=recipe.log.eval_every,
            save_every=recipe.log.save_every,
            seed=recipe.seed,
            data=data,
            folder=run.checkpoint,
            command="the same command",
        )
        super().__init__("model", model, {}, optimizer, settings, record=self._note, progress=progress)
        self._recipe, self._footage, self._held_out, self._run = recipe, footage, held_out, run
        self._squared: list[float] = []  # of the training clips since the last evaluation
        self._cpu_start = time.process_time()

    def restore(self) -> None:
        super().restore()
        self._run.rewind(self.step)
        spent = [record.get("cpu_seconds", 0) for record in self._run.records()]
        self._cpu_start -= max(spent, default=0)

    def loss(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        frames = batch(self._footage, self._recipe.data, self.settings.seed, part)
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.model.encode(frames).latent_dist.mean
            rebuilt = self.model.decode(latents).sample
        error = rebuilt.float() - frames
        squared = error.pow(2).mean()
        penalty = self._recipe.optim.latent_penalty * latents.float().pow(2).mean()
        return error.abs().mean() + squared + penalty, {"squared": squared.detach()}

    def score(self, model: Any, step: int) -> None:
        line: dict[str, object] = {
            "step": step,
            "train_psnr_db": 10 * math.log10(4 / float(np.mean(self._squared))),
            **scores_of(model, self._held_out),
            "cpu_seconds": round(time.process_time() - self._cpu_start),
        }
        self._squared = []
        self._run.record(line)
        self.progress.on_message(json.dumps(line))

    def _note(self, record: dict[str, Any]) -> None:
        self._squared.append(record["squared"])


def learning_rate(optim: PretrainOptim, step: int) -> float:
    """The rate of step `step` (the first is 0): a linear warm-up times a half cosine that ends at 2 %."""
    decayed = max(0.02, 0.5 * (1 + math.cos(math.pi * step / optim.steps)))
    return optim.lr * min(1, (step + 1) / optim.warmup_steps) * decayed


def pretrain(
    recipe: PretrainRecipe,
    footage: Footage,
    held_out: Sequence[Tensor],
    out: Path,
    progress: Progress | None = None,
    data: str = "",
) -> Any:
    """Train, going on from the checkpoint in `out` if there is one, and return the VAE with its averaged weights.

    `metrics.jsonl` in `out` gets a line per evaluation: PSNR on the training clips since the last one, and the
    averaged weights' PSNR and SSIM on `held_out`.

    Args:
        data: fingerprint of the videos; a checkpoint of other videos is refused.

    Raises DistillError as the loop does.
    """
    torch.manual_seed(recipe.seed)
    run = RunFolder(out)
    run.ensure()
    progress = progress or LoggedProgress()
    trainer = Pretrainer(recipe.model.build(), recipe, footage, held_out, run, progress, data)
    if checkpoint.exists(run.checkpoint):
        trainer.restore()
        progress.on_message(f"Going on from step {trainer.step}.")
    trainer.run()
    return trainer.ema


def scores_of(model: Any, held_out: Sequence[Tensor]) -> dict[str, float]:
    """PSNR and SSIM of reconstructed clips, in fp32, averaged."""
    if not held_out:
        return {}
    with torch.no_grad():
        scores = mean([score(model.decode(model.encode(c).latent_dist.mean).sample, c) for c in held_out])
    return {"psnr_db": scores.psnr_db, "ssim": scores.ssim}


def held_out_clips(folder: Path, cache: Path) -> dict[str, Tensor]:
    """From each video of a folder, 17 frames from the 10th on, scaled to a short side of 144, centre 128x128."""
    stop = _HELD_OUT_START + _HELD_OUT_FRAMES
    footage = decode(scan([folder]), cache, short_side=144, crop=128, max_frames=stop, min_frames=stop)
    clips = {}
    for path, array in zip(footage.paths, footage.arrays):
        top, left = ((side - _HELD_OUT_SIZE) // 2 for side in array.shape[1:3])
        window = array[_HELD_OUT_START:stop, top : top + _HELD_OUT_SIZE, left : left + _HELD_OUT_SIZE]
        clips[path.name] = from_pixels(torch.from_numpy(np.array(window)).permute(3, 0, 1, 2)[None])
    return clips


def main() -> None:
    """Train a teacher and save it, in half precision, as `OUT/teacher`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("recipe", help="a recipe of kind: pretrain, or the name of a shipped one")
    parser.add_argument("--videos", type=Path, required=True, help="folder of the recipe's videos")
    parser.add_argument("--held-out", type=Path, help="folder of videos to score on")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, metrics and the teacher")
    arguments = parser.parse_args()
    recipe = parse_recipe(arguments.recipe, PretrainRecipe)
    if missing := [name for name in recipe.data.videos if not (arguments.videos / name).is_file()]:
        raise DataError(f"{arguments.videos} lacks {', '.join(missing)}, which the recipe names.")
    if not recipe.data.videos:
        raise RecipeError("data.videos is empty: name the files to train on.")
    cache = arguments.out / "cache"
    data = recipe.data
    longest = (data.frames - 1) * data.stride[0] + 1
    videos = VideoSet(tuple(arguments.videos / name for name in data.videos))
    footage = decode(
        videos,
        cache,
        short_side=data.short_side,
        crop=max(data.sizes),
        max_frames=data.max_frames,
        min_frames=longest,
    )
    held_out = held_out_clips(arguments.held_out, cache) if arguments.held_out else {}
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = pretrain(recipe, footage, list(held_out.values()), arguments.out, data=videos.fingerprint)
    # Measured as it is shipped: rounded to half precision, computed in fp32.
    model = model.half().float()
    for name, clip in held_out.items():
        print(json.dumps({"clip": name, **scores_of(model, [clip])}))
    print(json.dumps({"clips": len(held_out), **scores_of(model, list(held_out.values()))}))
    model.half().save_pretrained(arguments.out / "teacher")


if __name__ == "__main__":
    main()
