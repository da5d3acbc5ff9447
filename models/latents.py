"""The contract between a VAE's encoder and any decoder of its latent space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LatentSpec:
    """Shape rules of a latent space. Latents and pictures are NCTHW, those of an image space NCHW.

    Attributes:
        channels: latent channels.
        spatial: pixels per latent cell along height and along width.
        temporal: frames per latent frame.
        first_frame_alone: True where the first latent frame stands for one frame only
            (causal encoders: `temporal * k + 1` frames), False where every latent frame
            stands for `temporal` frames (Video DC-AE).
        image: whether the space is one of single images, which have no time axis; `temporal` is then 1.
    """

    channels: int
    spatial: int
    temporal: int
    first_frame_alone: bool = True
    image: bool = False

    @property
    def layout(self) -> str:
        """The axes of latents and of what they decode to."""
        return "NCHW" if self.image else "NCTHW"

    @property
    def frame_rule(self) -> str:
        """The clip lengths that the latent space has, as users write it: `8k+1` or `4k`; `1` of images."""
        if self.image:
            return "1"
        return f"{self.temporal}k{'+1' if self.first_frame_alone else ''}"

    def frames(self, latent_frames: int) -> int:
        """Frames that decode from `latent_frames` latent frames."""
        if self.first_frame_alone:
            return self.temporal * (latent_frames - 1) + 1
        return self.temporal * latent_frames

    def latent_shape(self, *, frames: int, height: int, width: int, batch: int = 1) -> tuple[int, ...]:
        """Shape of the latents of a clip, (N, C, T, H, W), or of an image, (N, C, H, W).

        Raises ModelError for a size that the space lacks.
        """
        head = 1 if self.first_frame_alone else 0
        faults = []
        if self.image and frames != 1:
            faults.append(f"frames={frames}: these are single images, of 1 frame")
        elif frames < max(head, 1) or (frames - head) % self.temporal:
            near = self._nearest_frames(frames)
            faults.append(f"frames={frames} is not {self.frame_rule} (nearest: {' and '.join(map(str, near))})")
        for name, value in (("height", height), ("width", width)):
            if value < self.spatial or value % self.spatial:
                low = max(self.spatial, value // self.spatial * self.spatial)
                faults.append(
                    f"{name}={value} is not a multiple of {self.spatial} (nearest: {low} and {low + self.spatial})"
                )
        if faults:
            raise ModelError("This latent space does not have that clip size: " + "; ".join(faults) + ".")
        time = () if self.image else ((frames - head) // self.temporal + head,)
        return (batch, self.channels, *time, height // self.spatial, width // self.spatial)

    def decoded_shape(self, latents: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the pictures, of 3 channels, that latents of a shape decode to."""
        n, _, *time, h, w = latents
        return (n, 3, *map(self.frames, time), h * self.spatial, w * self.spatial)

    def check(self, latents: Tensor) -> None:
        """Refuse what is no floating-point tensor of latents of this space. Raises ModelError."""
        shape = tuple(latents.shape)
        if len(shape) != len(self.layout) or shape[1] != self.channels or 0 in shape:
            axes = ("height", "width") if self.image else ("frames", "height", "width")
            raise ModelError(
                f"Latents have shape {shape}; this decoder takes (batch, {self.channels}, {', '.join(axes)}), "
                "none of them empty."
            )
        if not latents.is_floating_point():
            raise ModelError(f"Latents are {latents.dtype}; a floating-point tensor is needed.")

    def _nearest_frames(self, frames: int) -> list[int]:
        head = 1 if self.first_frame_alone else 0
        k = max(0 if head else 1, (frames - head) // self.temporal)
        return [self.temporal * k + head, self.temporal * (k + 1) + head]

    def differences(self, other: LatentSpec) -> list[str]:
        """Each field in which two latent spaces disagree, with both values: `latent channels: 16 and 128`."""
        rows = (
            ("layout", self.layout, other.layout),
            ("latent channels", self.channels, other.channels),
            ("spatial compression", self.spatial, other.spatial),
            ("temporal compression", self.temporal, other.temporal),
            ("frame rule", self.frame_rule, other.frame_rule),
        )
        return [f"{name}: {a} and {b}" for name, a, b in rows if a != b]
