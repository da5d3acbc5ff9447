"""Perceptual terms of the loss: a table of names."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import ssim as similarity
from .errors import DistillError
from .metrics import images

# (frames, reference), both (N, 3, T, H, W) in [-1, 1] -> a scalar to minimise, 0 for equal clips.
PerceptualLoss = Callable[[Tensor, Tensor], Tensor]


def ssim() -> PerceptualLoss:
    """1 - SSIM, frame by frame."""
    return lambda frames, reference: 1 - similarity.ssim(*_to_unit(frames, reference))


def ms_ssim() -> PerceptualLoss:
    """1 - MS-SSIM, frame by frame."""
    return lambda frames, reference: 1 - similarity.ms_ssim(*_to_unit(frames, reference))


def lpips() -> PerceptualLoss:
    """LPIPS with VGG features (arXiv 1801.03924), as the released recipe uses it.

    Raises DistillError without the optional package `lpips`, and where its weights cannot be had.
    """
    try:
        from lpips import LPIPS
    except (ImportError, RuntimeError) as error:
        raise DistillError(
            f"loss.perceptual: lpips needs the package lpips, which cannot be imported ({error}). Install it "
            "with a torchvision that fits this torch, or choose ssim or ms_ssim."
        ) from None
    try:
        network = LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
    except Exception as error:  # its backbone comes over the network: any failure means that it is not to be had
        raise DistillError(f"loss.perceptual: the weights of lpips cannot be loaded: {error}") from error

    def loss(frames: Tensor, reference: Tensor) -> Tensor:
        return network.to(frames.device)(images(frames), images(reference)).mean()

    return loss


PERCEPTUAL: dict[str, Callable[[], PerceptualLoss]] = {"ssim": ssim, "ms_ssim": ms_ssim, "lpips": lpips}


def _to_unit(*clips: Tensor) -> list[Tensor]:
    """Images in [0, 1]. Not clamped: a pixel outside would have no gradient."""
    return [(images(clip) + 1) / 2 for clip in clips]
