"""Trains the embedded teacher, encoder and decoder, from nothing.

    python -m handheld.distill.pretrain teacher_embedded --videos FOLDER --held-out FOLDER --out runs/teacher

Loss: L1 + mean squared error to the real frames, and a small penalty on the size of the latents so that their
range stays bounded. Forward passes are in bfloat16 where the CPU has it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from handheld.files import replacing

from .data import ClipRule, Span, cut, decode, draw, generator, scan, to_frames
from .data.videos import Footage, VideoSet
from .errors import DataError, DistillError, RecipeError
from .metrics import mean, score
from .recipe import LogSection, parse_recipe
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
        clip = to_frames(cut(footage, draw(rng, footage, [span], rule), frames=data.frames, crop=size))
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


def pretrain(recipe: PretrainRecipe, footage: Footage, held_out: list[Tensor], out: Path, progress=print) -> Any:
    """Train, resuming from `out/state.pt` if it is there, and return the VAE with its averaged weights.

    `metrics.jsonl` in `out` gets a line per evaluation: PSNR on the training clips since the last one, and the
    averaged weights' PSNR and SSIM on `held_out`.
    """
    torch.manual_seed(recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    model = recipe.model.build()
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optim = recipe.optim
    optimizer = torch.optim.AdamW(
        parameters, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, eps=optim.eps
    )
    start, cpu_before = 0, 0.0
    state_file = out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["opt"])
        for own, saved in zip(average, state["ema"]):
            own.copy_(saved)
        start, cpu_before = state["step"], state["cpu"]
        progress(f"Going on from step {start}.")

    cpu_start = time.process_time() - cpu_before
    errors = []
    for step in range(start, optim.steps):
        decayed = max(0.02, 0.5 * (1 + math.cos(math.pi * step / optim.steps)))
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * min(1, (step + 1) / optim.warmup_steps) * decayed
        frames = batch(footage, recipe.data, recipe.seed, step)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(frames).latent_dist.mean
            rebuilt = model.decode(latents).sample
        error = rebuilt.float() - frames
        squared = error.pow(2).mean()
        penalty = optim.latent_penalty * latents.float().pow(2).mean()
        optimizer.zero_grad()
        (error.abs().mean() + squared + penalty).backward()
        torch.nn.utils.clip_grad_norm_(parameters, optim.clip_grad_norm)
        optimizer.step()
        # Rises to its value, so that the first random weights are soon forgotten.
        decay = min(optim.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        errors.append(squared.item())

        done = step + 1
        if done % recipe.log.eval_every == 0 or done == optim.steps:
            line = {
                "step": done,
                "train_psnr_db": 10 * math.log10(4 / float(np.mean(errors))),
                **_evaluate(model, parameters, average, held_out),
                "cpu_seconds": round(time.process_time() - cpu_start),
            }
            errors = []
            with (out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            progress(json.dumps(line))
        if done % recipe.log.save_every == 0 or done == optim.steps:
            state = {
                "model": model.state_dict(),
                "ema": average,
                "opt": optimizer.state_dict(),
                "step": done,
                "cpu": time.process_time() - cpu_start,
            }
            with replacing(state_file, DistillError) as partial:
                torch.save(state, partial)
    _swap(parameters, average)
    return model.eval()


def _evaluate(model: Any, parameters: list, average: list, held_out: list[Tensor]) -> dict[str, float]:
    _swap(parameters, average)
    scores = evaluate(model, held_out)
    _swap(parameters, average)
    return scores


def evaluate(model: Any, held_out: list[Tensor]) -> dict[str, float]:
    """PSNR and SSIM of reconstructed clips, in fp32, averaged."""
    if not held_out:
        return {}
    with torch.no_grad():
        scores = mean([score(model.decode(model.encode(c).latent_dist.mean).sample, c) for c in held_out])
    return {"psnr_db": scores.psnr_db, "ssim": scores.ssim}


@torch.no_grad()
def _swap(parameters: list, average: list) -> None:
    for parameter, other in zip(parameters, average):
        kept = parameter.detach().clone()
        parameter.copy_(other)
        other.copy_(kept)


def held_out_clips(folder: Path, cache: Path) -> dict[str, Tensor]:
    """From each video of a folder, 17 frames from the 10th on, scaled to a short side of 144, centre 128x128."""
    stop = _HELD_OUT_START + _HELD_OUT_FRAMES
    footage = decode(scan([folder]), cache, short_side=144, crop=128, max_frames=stop, min_frames=stop)
    clips = {}
    for path, array in zip(footage.paths, footage.arrays):
        top, left = ((side - _HELD_OUT_SIZE) // 2 for side in array.shape[1:3])
        window = array[_HELD_OUT_START:stop, top : top + _HELD_OUT_SIZE, left : left + _HELD_OUT_SIZE]
        clips[path.name] = to_frames(torch.from_numpy(np.array(window)).permute(3, 0, 1, 2)[None])
    return clips


def main() -> None:
    """Train a teacher and save it, in half precision, as `OUT/teacher`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("recipe", help="a recipe of kind: pretrain, or the name of a shipped one")
    parser.add_argument("--videos", type=Path, required=True, help="folder of the recipe's videos")
    parser.add_argument("--held-out", type=Path, help="folder of videos to evaluate on")
    parser.add_argument("--out", type=Path, required=True, help="folder for state, metrics and the teacher")
    arguments = parser.parse_args()
    recipe = parse_recipe(arguments.recipe, PretrainRecipe)
    if missing := [name for name in recipe.data.videos if not (arguments.videos / name).is_file()]:
        raise DataError(f"{arguments.videos} lacks {', '.join(missing)}, which the recipe names.")
    if not recipe.data.videos:
        raise RecipeError("data.videos is empty: name the files to train on.")
    cache = arguments.out / "cache"
    data = recipe.data
    longest = (data.frames - 1) * data.stride[0] + 1
    footage = decode(
        VideoSet(tuple(arguments.videos / name for name in data.videos)),
        cache,
        short_side=data.short_side,
        crop=max(data.sizes),
        max_frames=data.max_frames,
        min_frames=longest,
    )
    held_out = held_out_clips(arguments.held_out, cache) if arguments.held_out else {}
    model = pretrain(recipe, footage, list(held_out.values()), arguments.out)
    # Measured as it is shipped: rounded to half precision, computed in fp32.
    model = model.half().float()
    for name, clip in held_out.items():
        print(json.dumps({"clip": name, **evaluate(model, [clip])}))
    print(json.dumps({"clips": len(held_out), **evaluate(model, list(held_out.values()))}))
    model.half().save_pretrained(arguments.out / "teacher")


if __name__ == "__main__":
    main()
