"""A nearest-neighbour doubling and the convolution behind it, as one convolution of the picture that is doubled.

    before   conv2d(upsample_nearest2d(x, 2); W (O, C, k, k), b)     x: (N, C, H, W), zero padding (k - 1) / 2

`REWRITE`  after    pixel_shuffle(conv2d(x; W' (4*O, C, k', k'), b'), 2)

`PARTS`    after    part p, q = conv2d(pad(x); W" (O, C, n, n), b)   n = 2 for k = 3, p and q in 0, 1
                    pixel_shuffle(the four parts, channel by channel, 2)

Of a doubled picture the rows 2h and 2h+1 are equal. The tap t of an output row 2h+p therefore meets row
h + floor((p + t - (k-1)/2) / 2), and taps that meet the same row add up. Of three taps two are left, but others for
p = 0 than for p = 1: in one kernel they are three again (k' = 3); in kernels that begin at rows of their own, two.
Zeros around the doubled picture are zeros around x.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, is_constant, shape_of
from .frames import aten

_DOUBLING = (aten.upsample_nearest2d.vec, aten._upsample_nearest_exact2d.vec)


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    found = is_call(node, aten.conv2d.default) and is_call(node.args[0], *_DOUBLING)
    return (node, node.args[0]) if found else None


def _check(match: tuple[fx.Node, ...]) -> str | None:
    conv, doubling = match
    x, y = shape_of(doubling.args[0]), shape_of(doubling)
    kernel = shape_of(conv.args[1])[-2:]
    stride, padding, dilation, groups = (argument(conv, i) for i in (3, 4, 5, 6))
    if not is_constant(conv.args[1]):
        return "the weight is computed, not a constant"
    if y[-2:] != (2 * x[-2], 2 * x[-1]):
        return f"scales {x[-2:]} to {y[-2:]}, not to twice the size"
    if len(doubling.users) > 1:
        return "the doubled picture is used elsewhere too"
    if isinstance(padding, str):
        return f"padding {padding!r} is not given as numbers"
    if set(stride) != {1} or set(dilation) != {1} or groups != 1:
        return f"stride {list(stride)}, dilation {list(dilation)} and {groups} groups; all must be 1"
    if any(size % 2 == 0 or 2 * pad != size - 1 for size, pad in zip(kernel, _both(padding))):
        return f"kernel {list(kernel)} with padding {list(padding)}: the picture must keep its size"
    return None


# Measured with onnxruntime and one thread, against the doubling and its convolution: 256 channels to 256 took 1.7
# times less, 128 to 64 1.5 times, 24 to 12 1.6 times, 64 to 64 as long or a sixth longer.
_WORTH_CHANNELS = 128


def _check_parts(match: tuple[fx.Node, ...]) -> str | None:
    out, channels = shape_of(match[0].args[1])[:2]
    if reason := _check(match):
        return reason
    if channels < min(_WORTH_CHANNELS, 2 * out):
        return f"{channels} channels to {out}: copying the parts takes what fewer multiply-adds save"
    return None


def _both(padding: list[int]) -> list[int]:
    return list(padding) * (2 if len(padding) == 1 else 1)


def _folded(weight: Tensor) -> Tensor:
    """W (O, C, kh, kw) to W' (4*O, C, k'h, k'w), channels in the order of a pixel shuffle."""
    rows, columns = (_meetings(size) for size in weight.shape[-2:])
    folded = torch.einsum("ocst,pms,qnt->opqcmn", weight.double(), rows, columns)
    return folded.flatten(0, 2).to(weight.dtype)


def _meetings(size: int) -> Tensor:
    """M (2, k', k): 1 where, for the output row 2h + p, tap t of k meets the m-th of k' rows around h."""
    half = size // 2
    reach = (half + 1) // 2
    meets = torch.zeros(2, 2 * reach + 1, size, dtype=torch.float64)
    for p in range(2):
        for t in range(size):
            meets[p, (p + t - half) // 2 + reach, t] = 1
    return meets


def _part(size: int, p: int) -> tuple[int, int, Tensor]:
    """Of the output rows 2h + p: rows of zeros before and behind the input, and M (k', k) as in `_meetings`."""
    half = size // 2
    reach = (half + 1) // 2
    first, last = (p - half) // 2, (p + half) // 2
    return -first, last, _meetings(size)[p, first + reach : last + reach + 1]


def _replace_by_parts(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    conv, doubling = match
    x, weight, bias = doubling.args[0], graph.value(conv.args[1]), argument(conv, 2)
    n, _, h, w = shape_of(x)
    out = weight.shape[0]
    pieces = []
    for p, q in product(range(2), range(2)):
        (above, below, rows), (left, right, columns) = (
            _part(size, i) for size, i in zip(weight.shape[-2:], (p, q))
        )
        part = torch.einsum(
            "ocst,ms,nt->ocmn", weight.double(), rows.to(weight.device), columns.to(weight.device)
        ).to(weight.dtype)
        pads = [left, right, above, below]
        padded = graph.call(aten.constant_pad_nd.default, x, pads, 0.0) if any(pads) else x
        piece = graph.call(aten.conv2d.default, padded, graph.constant(part), bias, [1, 1], [0, 0], [1, 1], 1)
        pieces.append(graph.call(aten.reshape.default, piece, [n, out, 1, h, w]))
    joined = graph.call(aten.reshape.default, graph.call(aten.cat.default, pieces, 2), [n, 4 * out, h, w])
    return graph.call(aten.pixel_shuffle.default, joined, 2)


def _replace(graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    conv, doubling = match
    folded = _folded(graph.value(conv.args[1]))
    bias = argument(conv, 2)
    if bias is not None:
        bias = graph.constant(graph.value(bias).repeat_interleave(4))
    padding = [size // 2 for size in folded.shape[-2:]]
    y = graph.call(aten.conv2d.default, doubling.args[0], graph.constant(folded), bias, [1, 1], padding, [1, 1], 1)
    return graph.call(aten.pixel_shuffle.default, y, 2)


def _upsample(*conv, mode: str = "nearest", scale: float = 2.0, **options):
    return lambda: nn.Sequential(nn.Upsample(scale_factor=scale, mode=mode), nn.Conv2d(*conv, **options))


class _UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled = F.interpolate(x, scale_factor=2.0)
        return self.conv(doubled) + doubled


_CASES = (
    Case("frames", _upsample(4, 6, 3, padding=1), (3, 4, 5, 6)),
    Case("exact, no bias", _upsample(4, 6, 3, padding=1, bias=False, mode="nearest-exact"), (1, 4, 3, 2)),
    Case("pointwise", _upsample(4, 6, 1), (2, 4, 3, 5)),
    Case("five taps, seven taps", _upsample(4, 6, (5, 7), padding=(2, 3)), (2, 4, 3, 5)),
    Case("one row", _upsample(4, 2, 3, padding=1), (1, 4, 1, 5)),
)

_NEAR_MISSES = (
    Case("threefold", _upsample(4, 6, 3, padding=1, scale=3.0), (1, 4, 3, 2), 0, "not to twice the size"),
    Case("stride", _upsample(4, 6, 3, padding=1, stride=2), (1, 4, 3, 2), 0, "stride [2, 2]"),
    Case("depthwise", _upsample(4, 4, 3, padding=1, groups=4), (1, 4, 3, 2), 0, "4 groups"),
    Case("unpadded", _upsample(4, 4, 3), (1, 4, 3, 2), 0, "must keep its size"),
    Case("bilinear", _upsample(4, 4, 3, padding=1, mode="bilinear"), (1, 4, 3, 2), 0),
    Case("used twice", _UsedTwice, (1, 4, 3, 2), 0, "used elsewhere too"),
)

REWRITE = Rewrite(
    name="upsample_conv",
    why=(
        "XNNPACK has no nearest-neighbour resize and its delegate would be cut in two there; Vulkan's would see "
        "stacked frames as one picture. The doubled input, four times as large, is never made."
    ),
    match=_match,
    check=_check,
    replace=_replace,
    cases=(
        Case("frames", _upsample(4, 6, 3, padding=1), (3, 4, 5, 6)),
        Case("exact, no bias", _upsample(4, 6, 3, padding=1, bias=False, mode="nearest-exact"), (1, 4, 3, 2)),
        Case("pointwise", _upsample(4, 6, 1), (2, 4, 3, 5)),
        Case("five taps, seven taps", _upsample(4, 6, (5, 7), padding=(2, 3)), (2, 4, 3, 5)),
        Case("one row", _upsample(4, 2, 3, padding=1), (1, 4, 1, 5)),
    ),
    near_misses=(
        Case("threefold", _upsample(4, 6, 3, padding=1, scale=3.0), (1, 4, 3, 2), 0, "not to twice the size"),
        Case("stride", _upsample(4, 6, 3, padding=1, stride=2), (1, 4, 3, 2), 0, "stride [2, 2]"),
        Case("depthwise", _upsample(4, 4, 3, padding=1, groups=4), (1, 4, 3, 2), 0, "4 groups"),
        Case("unpadded", _upsample(4, 4, 3), (1, 4, 3, 2), 0, "must keep its size"),
        Case("bilinear", _upsample(4, 4, 3, padding=1, mode="bilinear"), (1, 4, 3, 2), 0),
        Case("used twice", _UsedTwice, (1, 4, 3, 2), 0, "used elsewhere too"),
    ),
)

PARTS = replace(
    REWRITE,
    name="upsample_conv_parts",
    why=(
        "Of a 3x3 kernel's multiply-adds four ninths are left, and the doubled input, four times as large, is "
        "never made."
    ),
    check=_check_parts,
    replace=_replace_by_parts,
    cases=(
        Case("frames", _upsample(6, 3, 3, padding=1), (3, 6, 5, 6)),
        Case("exact, no bias", _upsample(6, 2, 3, padding=1, bias=False, mode="nearest-exact"), (1, 6, 3, 2)),
        Case("many channels", _upsample(128, 128, 3, padding=1), (1, 128, 3, 2)),
        Case("pointwise", _upsample(4, 2, 1), (2, 4, 3, 5)),
        Case("five taps, seven taps", _upsample(4, 2, (5, 7), padding=(2, 3)), (2, 4, 3, 5)),
        Case("one row", _upsample(4, 2, 3, padding=1), (1, 4, 1, 5)),
    ),
    near_misses=(
        *REWRITE.near_misses,
        Case("few channels", _upsample(4, 4, 3, padding=1), (1, 4, 3, 2), 0, "takes what fewer multiply-adds save"),
    ),
)
