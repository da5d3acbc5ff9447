"""The one form of captured graphs: what is brought to it computes the same, the rest is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handheld.convert import TARGETS
from handheld.convert.errors import ExportError
from handheld.convert.graph.capture import capture
from handheld.convert.graph.rewrite import apply
from handheld.convert.rewrites.cases import of

CLIP, FRAMES = (1, 4, 5, 6, 7), (3, 4, 6, 7)


class _WithoutGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 4, 3, padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = self.conv(x)
        with torch.autocast("cpu", enabled=False):
            return y.float() * 2


def _residual_in_place(x: Tensor) -> Tensor:
    y = x * 2
    y += x
    z = y.relu_()
    return z.mul_(3).add_(y, alpha=2)


FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "same": (lambda: nn.Conv3d(4, 4, 3, padding="same"), CLIP),
    "same, even": (lambda: nn.Conv3d(4, 4, (3, 4, 2), padding="same"), CLIP),
    "same, dilated": (lambda: nn.Conv3d(4, 4, 3, padding="same", dilation=(1, 2, 1)), CLIP),
    "valid": (lambda: nn.Conv3d(4, 6, 3, padding="valid", stride=(1, 2, 2)), CLIP),
    "same, 2D": (lambda: nn.Conv2d(4, 4, 3, padding="same"), FRAMES),
    "same, even, 2D": (lambda: nn.Conv2d(4, 4, 2, padding="same", bias=False), FRAMES),
    "same, replicated": (lambda: nn.Conv2d(4, 4, 3, padding="same", padding_mode="replicate"), FRAMES),
    "mean of all": (of(lambda x: x - x.mean()), CLIP),
    "mean over None": (of(lambda x: x - x.mean(dim=None, keepdim=True)), CLIP),
    "mean over no axes": (of(lambda x: x - x.mean(dim=[], keepdim=True)), CLIP),
    "sum of all": (of(lambda x: x / x.abs().sum()), CLIP),
    "sum over None": (of(lambda x: x / x.abs().sum(None, keepdim=True)), CLIP),
    "largest of all": (of(lambda x: x / x.abs().amax(keepdim=True)), CLIP),
    "smallest of all": (of(lambda x: x + x.amin()), CLIP),
    "in place": (lambda: nn.Sequential(nn.Conv3d(4, 4, 1), nn.ReLU(inplace=True), nn.SiLU(inplace=True)), CLIP),
    "residual in place": (of(_residual_in_place), CLIP),
    "casts to the dtype that is there": (of(lambda x: (x.float() * 2).to(torch.float32).type_as(x)), CLIP),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Dropout3d(0.5), nn.Conv3d(4, 4, 1)), CLIP),
    "regions": (_WithoutGradients, CLIP),
    "an assert on shapes": (of(lambda x: torch._assert(x.shape[1] == 4, "four channels") or x * 2), CLIP),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_list_of_rewrites_keeps_what_a_form_computes(form: str) -> None:
    build, shape = FORMS[form]
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(shape)
    with torch.no_grad():
        wanted = model(x.clone())
    for target in TARGETS.values():
        for precision in target.precisions.values():
            graph = capture(model, (x.clone(),))
            apply(graph, precision.rewrites)
            with torch.no_grad():
                assert (graph(x.clone()) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_no_op_writes_in_place_asserts_or_pads_by_a_word(form: str) -> None:
    build, shape = FORMS[form]
    graph = capture(build().eval(), (torch.randn(shape),))
    for node in graph.graph.nodes:
        if node.op == "call_function":
            assert not node.target._schema.is_mutable
            assert "assert" not in str(node.target)
            assert not any(isinstance(argument, str) for argument in node.args) or node.target._opname == "pad"


def _writes_over_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] = 1
    return y


def _writes_over_what_is_read_later(x: Tensor) -> Tensor:
    y = x * 2
    y.view(-1).relu_()
    return y + 1


class _Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * self.calls


def _branches(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda a: a * 2, lambda a: a * 3, (x,))


def _under_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.conv3d(x, x.new_ones(4, 4, 1, 1, 1))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (of(_writes_over_a_view), "writes over memory that mul shares"),
        (of(_writes_over_what_is_read_later), "writes over memory that mul shares"),
        (of(lambda x: x.relu_()), "an input of the model"),
        (_Counts, "a parameter or buffer of the model"),
        (of(lambda x: x + torch.randn_like(x)), "draws random numbers"),
        (of(_branches), "chooses what to compute while it runs"),
        (of(_under_autocast), "torch.autocast"),
    ],
    ids=["a view", "read later", "input", "buffer", "random", "branch", "autocast"],
)
def test_what_has_no_such_form_is_refused_with_a_reason(build: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        capture(build().eval(), (torch.randn(CLIP),))
