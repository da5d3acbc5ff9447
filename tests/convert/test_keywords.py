"""No rewrite drops a keyword argument: every rewrite of the table over ops with keywords that are not the usual."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handheld.convert import TARGETS
from handheld.convert.graph.capture import capture
from handheld.convert.graph.nodes import is_call, keywords
from handheld.convert.graph.rewrite import apply
from handheld.convert.rewrites import REWRITES, keep_epsilon, safe_rms_norm
from handheld.convert.rewrites.cases import of

aten = torch.ops.aten


def _norm(x: Tensor, **how: object) -> Tensor:
    return x * torch.rsqrt(torch.add(x.pow(2).mean(1, keepdim=True), 1e-2, **how))


def _layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x.movedim(1, -1), (x.shape[1],), eps=0.5).movedim(-1, 1)


PROGRAMS: dict[str, Callable[[Tensor], Tensor]] = {
    "add alpha": lambda x: torch.add(x, x.sigmoid(), alpha=2),
    "add alpha, a number": lambda x: torch.add(x, 3.0, alpha=2),
    "add alpha, an epsilon": lambda x: torch.add(x * 0, 1e-8, alpha=100).rsqrt(),
    "sub alpha": lambda x: torch.sub(x, x.sigmoid(), alpha=3),
    "rsub alpha": lambda x: torch.rsub(x, x.sigmoid(), alpha=3),
    "div rounding_mode": lambda x: torch.div(x, x.sigmoid(), rounding_mode="floor"),
    "div by a number, rounded": lambda x: torch.div(x, 0.3, rounding_mode="trunc"),
    "mean dtype": lambda x: x.mean(1, keepdim=True, dtype=torch.float64),
    "mean dtype, over time": lambda x: x.mean(2, keepdim=True, dtype=torch.float64),
    "sum dtype": lambda x: x.sum(1, keepdim=True, dtype=torch.float64),
    "gelu approximate": lambda x: F.gelu(x * 3, approximate="tanh"),
    "clamp": lambda x: x.clamp(max=0.1) + x.clamp(min=-0.1, max=0.2),
    "norm, an addend with alpha": lambda x: _norm(x, alpha=50),
    "layer norm, a large epsilon": _layer_norm,
    "softmax dtype": lambda x: F.softmax(x, 1, dtype=torch.float64),
    "cat by name": lambda x: torch.cat([x, x], dim=1),
    "leaky": lambda x: F.leaky_relu(x, negative_slope=0.3) + F.elu(x, alpha=2.0) + F.celu(x, alpha=0.3),
    "softplus": lambda x: F.softplus(x, beta=3.0, threshold=2.0),
    "pad by a value": lambda x: F.pad(x, (1, 1, 0, 0, 1, 0), value=2.0),
    "variance, corrected": lambda x: x.var(1, correction=2, keepdim=True),
    "hard clamp and round": lambda x: torch.round(x, decimals=1),
}


def _difference(passes: tuple, program: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
    torch.manual_seed(0)
    x = torch.randn(shape)
    graph = capture(of(program)(), (x,))
    apply(graph, passes)
    with torch.no_grad():
        found, wanted = graph(x), program(x)
    assert found.dtype == wanted.dtype
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize("shape", [(1, 4, 3, 2, 5), (3, 4, 2, 5)], ids=["clip", "frames"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_rewrite_drops_a_keyword(program: str, shape: tuple[int, ...]) -> None:
    if program.startswith("pad") and len(shape) == 4:
        pytest.skip("pads three axes of a clip")
    wrong = {r.name: d for r in REWRITES if (d := _difference((r,), PROGRAMS[program], shape)) > 1e-5}
    assert wrong == {}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_list_of_rewrites_drops_a_keyword(program: str, target: str) -> None:
    lists = {name: precision.rewrites for name, precision in TARGETS[target].precisions.items()}
    wrong = {n: d for n, r in lists.items() if (d := _difference(r, PROGRAMS[program], (1, 4, 3, 2, 5))) > 1e-5}
    assert wrong == {}


def test_a_refusal_names_the_keyword() -> None:
    x = torch.randn(1, 4, 3, 2, 5)
    graph = capture(of(PROGRAMS["norm, an addend with alpha"])(), (x,))
    (record,) = apply(graph, (safe_rms_norm.REWRITE,))
    assert record.applied == 0
    assert "alpha=50" in record.refused[0].reason


def test_keywords_that_say_what_the_op_does_anyway_are_none() -> None:
    x = torch.randn(1, 4, 3, 2, 5)
    graph = capture(of(lambda x: torch.add(x, 1.0, alpha=1) + x.mean(1, True, dtype=torch.float32))(), (x,))
    assert [keywords(node) for node in graph.graph.nodes if node.op == "call_function"] == [{}, {}, {}]


def test_an_epsilon_with_alpha_stays() -> None:
    x = torch.randn(1, 4, 3, 5)
    graph = capture(of(PROGRAMS["add alpha, an epsilon"])(), (x,))
    apply(graph, (keep_epsilon.REWRITE,))
    assert any(is_call(node, aten.add.Tensor) and keywords(node) == {"alpha": 100} for node in graph.graph.nodes)


def test_a_module_with_keywords_is_not_special() -> None:
    assert _difference((), lambda x: nn.GELU("tanh")(x), (1, 4, 3, 2, 5)) == 0
