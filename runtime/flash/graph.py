"""The feed-forward op of exported graphs: `torch.ops.handheld.flash_ffn`, a layer of a flash pack as one node.

    class Block(torch.nn.Module):
        def forward(self, x):
            return x + flash_ffn(self.norm(x), "model.flash", 0, "exact", 64 << 20)

Importing this module registers the op. In eager mode it runs the engine. `torch.export` keeps it; then ONNX export
turns it into the node handheld::FlashFeedForward (with `onnx_translation`), and ExecuTorch into a call of
handheld::flash_ffn.out. ort/ and executorch/ have the kernels. All nodes of a pack share one session, and so its
budget, which must be the same on each. The engine computes one token after the other: the leading dimensions of x
are its tokens, in order.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch

from .engine import Mode, Session, SessionOptions, open_pack

_ARGUMENTS = "Tensor x, str pack, int layer, str mode, int budget_bytes"

_library = torch.library.Library("handheld", "FRAGMENT")
_library.define(f"flash_ffn({_ARGUMENTS}) -> Tensor")
_library.define(f"flash_ffn.out({_ARGUMENTS}, *, Tensor(a!) out) -> Tensor(a!)")


@lru_cache(maxsize=8)
def _session(pack: str, budget_bytes: int) -> Session:
    return open_pack(pack).session(SessionOptions(budget_bytes=budget_bytes))


# What is alive after that is reported as leaked.
atexit.register(_session.cache_clear)


def flash_ffn(x: torch.Tensor, pack: str, layer: int, mode: Mode, budget_bytes: int) -> torch.Tensor:
    """x [..., d_model] fp32 -> the same shape. Raises FlashError."""
    return cast(torch.Tensor, torch.ops.handheld.flash_ffn(x, pack, layer, mode, budget_bytes))


@torch.library.impl(_library, "flash_ffn", "CompositeExplicitAutograd")
def _eager(x: torch.Tensor, pack: str, layer: int, mode: Mode, budget_bytes: int) -> torch.Tensor:
    session = _session(pack, budget_bytes)
    tokens = x.detach().numpy().reshape(-1, x.shape[-1])
    rows = [session.ffn(layer, token, mode) for token in tokens]
    return torch.from_numpy(np.stack(rows).reshape(x.shape))


@torch.library.impl(_library, "flash_ffn.out", "CompositeExplicitAutograd")
def _eager_out(
    x: torch.Tensor, pack: str, layer: int, mode: Mode, budget_bytes: int, *, out: torch.Tensor
) -> torch.Tensor:
    return out.copy_(_eager(x, pack, layer, mode, budget_bytes))


@torch.library.register_fake("handheld::flash_ffn", lib=_library)
def _fake(x: torch.Tensor, pack: str, layer: int, mode: str, budget_bytes: int) -> torch.Tensor:
    return torch.empty_like(x)


def onnx_translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(..., dynamo=True, custom_translation_table=onnx_translation())`."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    attributes = {
        "pack": OpSchema.AttrType.STRING,
        "layer": OpSchema.AttrType.INT,
        "mode": OpSchema.AttrType.STRING,
        "budget_bytes": OpSchema.AttrType.INT,
    }
    schema = OpSchema(
        "FlashFeedForward",
        "handheld",
        1,
        inputs=[OpSchema.FormalParameter("x", "tensor(float)")],
        outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
        attributes=[OpSchema.Attribute(name, kind) for name, kind in attributes.items()],
    )
    feed_forward = Op(Opset("handheld", 1), "FlashFeedForward", schema)

    def translate(x: Any, pack: str, layer: int, mode: str, budget_bytes: int) -> Any:
        return feed_forward(x, pack=pack, layer=layer, mode=mode, budget_bytes=budget_bytes)

    return {torch.ops.handheld.flash_ffn.default: translate}
