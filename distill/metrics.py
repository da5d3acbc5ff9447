"""PSNR and SSIM of reconstructed clips, in two conventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .ssim import ssim

# Identical frames would have an infinite PSNR and make every mean infinite: 100 dB is the highest value.
_LEAST_MSE = 1e-10


@dataclass(frozen=True)
class Scores:
    """How near reconstructed clips are to the real ones: values per frame, averaged over a clip, then over clips.

    Attributes:
        psnr_db, ssim: frames clamped and mapped to [0, 1].
        psnr_minmax_db, ssim_minmax: as the released evaluation does it (hustvl/Turbo-VAED at 9268488,
            train_vae/validation_metrics.py): each clip stretched to [0, 1] by its own minimum and maximum.
    """

    psnr_db: float
    ssim: float
    psnr_minmax_db: float
    ssim_minmax: float


def score(frames: Tensor, reference: Tensor) -> Scores:
    """Scores of one clip. Both are (1, 3, T, H, W) in [-1, 1]; `frames` is clamped, H and W are at least 11."""
    frames, reference = frames.float().clamp(-1, 1), reference.float()
    plain = (frames + 1) / 2, (reference + 1) / 2
    stretched = _stretch(frames), _stretch(reference)
    return Scores(_psnr(*plain), _ssim(*plain), _psnr(*stretched), _ssim(*stretched))


def mean(scores: Sequence[Scores]) -> Scores:
    """The mean of each score over clips."""
    return Scores(*(sum(getattr(s, field.name) for s in scores) / len(scores) for field in fields(Scores)))


def images(frames: Tensor) -> Tensor:
    """(N, 3, T, H, W) to (N * T, 3, H, W)."""
    return frames.transpose(1, 2).flatten(0, 1)


def _stretch(frames: Tensor) -> Tensor:
    low, high = frames.min(), frames.max()
    return (frames - low) / (high - low + 1e-10)


def _psnr(frames: Tensor, reference: Tensor) -> float:
    mse = (frames - reference).square().mean(dim=(0, 1, 3, 4)).clamp(min=_LEAST_MSE)
    return float(-10 * torch.log10(mse).mean())


def _ssim(frames: Tensor, reference: Tensor) -> float:
    return float(ssim(images(frames), images(reference)))
