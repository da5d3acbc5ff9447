"""The loss of a distillation: L1 and a perceptual term against the real frames, features against the teacher's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .features import FeatureLoss
from .perceptual import PerceptualLoss
from .recipe import LossSection


class DistillLoss(nn.Module):
    """Weighted sum of the terms; its parameters are the projection heads of the feature term.

    Args:
        section: weights.
        features: None where `section.feature` is 0.
        perceptual: None where there is no `section.perceptual`.
    """

    def __init__(
        self, section: LossSection, features: FeatureLoss | None, perceptual: PerceptualLoss | None
    ) -> None:
        super().__init__()
        self.section, self.features, self.perceptual = section, features, perceptual

    def forward(
        self,
        frames: Tensor,
        reference: Tensor,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its unweighted terms (`l1`, `feature`, `perceptual`).

        Args:
            frames: the student's, (N, 3, T, H, W), not clamped.
            reference: the real ones, in [-1, 1].
            student: the student's feature maps by tap.
            teacher: the teacher's.
        """
        frames = frames.float()
        terms = {"l1": nn.functional.l1_loss(frames, reference)}
        loss = self.section.l1 * terms["l1"]
        if self.features is not None:
            terms["feature"] = self.features(student, teacher)
            loss = loss + self.section.feature * terms["feature"]
        if self.perceptual is not None and self.section.perceptual is not None:
            terms["perceptual"] = self.perceptual(frames, reference)
            loss = loss + self.section.perceptual.weight * terms["perceptual"]
        return loss, {name: term.detach() for name, term in terms.items()}
