"""Feature distillation: the student's feature maps against the teacher's, through heads where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import DistillError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shuffle:
    """How a projected map grows to the teacher's size: by `time` and by `space` in height and width."""

    time: int
    space: int

    def __call__(self, maps: Tensor) -> Tensor:
        """(N, C * time * space**2, T, H, W) to (N, C, T * time - (time - 1), H * space, W * space).

        Channels are in the order (C, time, height, width) and the first `time - 1` frames are dropped, as in the
        released training code.
        """
        n, _, t, h, w = maps.shape
        maps = maps.reshape(n, -1, self.time, self.space, self.space, t, h, w)
        maps = maps.permute(0, 1, 5, 2, 6, 3, 7, 4)
        maps = maps.reshape(n, -1, t * self.time, h * self.space, w * self.space)
        return maps[:, :, self.time - 1 :]


def shuffle_between(student: Shape, teacher: Shape) -> Shuffle | None:
    """The shuffle from one (T, H, W) to another: none, 2x in space, or 2x in time and space; else None."""
    t, h, w = student
    table: dict[Shape, Shuffle] = {
        (t, h, w): Shuffle(1, 1),
        (t, 2 * h, 2 * w): Shuffle(1, 2),
        (2 * t - 1, 2 * h, 2 * w): Shuffle(2, 2),
    }
    return table.get(teacher)


class Head(nn.Sequential):
    """Projection of a student's map onto a teacher's, for training only: two 1x1x1 convolutions (the release's
    `conv-2layer`, which has nothing between them), then the shuffle."""

    def __init__(self, width: int, teacher_width: int, shuffle: Shuffle) -> None:
        channels = teacher_width * shuffle.time * shuffle.space**2
        super().__init__(nn.Conv3d(width, channels, 1), nn.Conv3d(channels, channels, 1))
        self.shuffle = shuffle

    def forward(self, maps: Tensor) -> Tensor:
        return self.shuffle(super().forward(maps))


class FeatureLoss(nn.Module):
    """Sum over the taps of the mean squared difference between (projected) student and teacher maps.

    Maps of one shape are compared as they are; the others get a `Head`.

    Args:
        taps: student's tap -> teacher's tap.
        student: shape (N, C, T, H, W) of each of the student's taps.
        teacher: likewise of the teacher's, for the same latents.
        unit: the teacher's maps are divided by their root mean square, clip by clip.

    Raises DistillError, naming every fault, for a tap that is not there and for sizes that no shuffle relates.
    """

    def __init__(
        self,
        taps: Mapping[str, str],
        student: Mapping[str, Shape],
        teacher: Mapping[str, Shape],
        *,
        unit: bool = False,
    ) -> None:
        super().__init__()
        self.unit = unit
        self.taps = dict(taps)
        self.heads = nn.ModuleDict()
        faults = []
        for mine, its in self.taps.items():
            absent = [
                f"the {who} has no tap {tap} (it has {', '.join(shapes)})"
                for who, tap, shapes in (("student", mine, student), ("teacher", its, teacher))
                if tap not in shapes
            ]
            faults += absent
            if absent or student[mine] == teacher[its]:
                continue
            shuffle = shuffle_between(student[mine][2:], teacher[its][2:])
            if shuffle is None:
                faults.append(
                    f"the student's {mine} is {_size(student[mine])} (frames, height, width) and the teacher's "
                    f"{its} {_size(teacher[its])}: neither equal nor twice the size"
                )
            else:
                self.heads[mine] = Head(student[mine][1], teacher[its][1], shuffle)
        if faults:
            raise DistillError("loss.taps: " + "; ".join(faults) + ".")

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """Maps by tap, each (N, C, T, H, W), to a scalar."""
        terms = []
        for mine, its in self.taps.items():
            maps = self.heads[mine](student[mine]) if mine in self.heads else student[mine]
            target = teacher[its].float()
            if self.unit:
                mean_square = target.square().mean(dim=(1, 2, 3, 4), keepdim=True)
                target = target / mean_square.sqrt().clamp(min=1e-6)
            terms.append(nn.functional.mse_loss(maps.float(), target))
        return torch.stack(terms).sum()


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape[2:]))
