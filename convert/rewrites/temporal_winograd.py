"""Dense 3D convolution with 3 time taps by Winograd's minimal filtering F(m, 3) along time.

    before   conv3d(x; W (O, I, 3, kh, kw), b)                                x, y: NCTHW, batch 1
    after    u = B @ to_frames(x)                 (n * P, I, H, W)            every tile's P inputs
             z = conv2d(u; W', b', groups=P)      (n, P*I, H, W) -> (n, P*O, H', W')
             y = A @ z                            (T, O, H', W'), then from_frames

`@` combines whole frames: `REWRITES` by a matrix product (T, I*H*W), `POINTWISE` by a 1x1 convolution of one image
whose channels are the frames, (1, T, I*H, W), for runtimes that delegate only convolutions.

n tiles of m frames cover the clip, and each tile costs P = m + 2 convolutions of a frame in place of 3 * m: F(2, 3)
4 for 6, F(3, 3) 5 for 9, F(4, 3) 6 for 12, F(5, 3) 7 for 15. W' are fixed combinations of the three taps, B and A
of frames. All tiles of all positions are one grouped convolution. B also holds the copies of border frames before
the convolution and those that fill the last tile, A drops the frames that it has over, and the bias rides on the
position of point 1, which every output frame has once.

Each m is a rewrite of its own: a target lets its cost table choose between them and one convolution per tap.

Exact in real arithmetic; in fp32 the error of a layer grows from 1.3e-6 to 8e-6 at outputs up to 5. Not for fp16,
where W', up to 30 times as large as W, cancels: lists for fp16 should not have it.

Source: Winograd, "Arithmetic complexity of computations", 1980; in the plane, Lavin and Gray, arXiv 1509.09308.
Constructed as Toom-Cook interpolation, transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx

from ..graph.rewrite import Case, Graph, Rewrite, argument, is_call, is_constant, shape_of
from .cases import conv3d
from .frames import aten, convolve, from_frames, time_refusal, to_frames
from .merge_border_taps import bordered, source_frames

_TAPS = 3

# Interpolation points in the order in which larger tiles take them, besides infinity: small, with small inverses.
_POINTS = (0.0, 1.0, -1.0, 2.0, -0.5, -2.0)
_BIAS_POSITION = _POINTS.index(1.0)
_TILES = (2, 3, 4, 5)


@dataclass(frozen=True)
class _Transforms:
    """y = outputs @ ((kernel @ w) * (inputs @ x)) for m + 2 frames x, 3 taps w and m frames y, in float64.

    Attributes:
        outputs: (m, P).
        kernel: (P, 3).
        inputs: (P, P).
    """

    outputs: Tensor
    kernel: Tensor
    inputs: Tensor


def _transforms(m: int) -> _Transforms:
    """F(m, 3). Polynomial multiplication by evaluation and interpolation at P points, transposed."""
    positions = m + _TAPS - 1

    def powers(columns: int) -> Tensor:
        rows = [[point**k for k in range(columns)] for point in _POINTS[: positions - 1]]
        return torch.tensor([*rows, [0.0] * (columns - 1) + [1.0]], dtype=torch.float64)

    inputs = torch.linalg.inv(powers(positions)).T
    outputs = powers(m).T
    # Every row of B and column of A sums to 1 in absolute value, so that activations keep their size.
    rows = inputs.abs().sum(1, keepdim=True)
    columns = outputs.abs().sum(0, keepdim=True)
    return _Transforms(outputs / columns, powers(_TAPS) * rows * columns.T, inputs / rows)


def match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not is_call(node, aten.conv3d.default) or shape_of(node.args[1])[2] != _TAPS:
        return None
    return (node,)


def check(match: tuple[fx.Node, ...]) -> str | None:
    (conv,) = match
    bias, stride, dilation, groups = (argument(conv, i) for i in (2, 3, 5, 6))
    if bias is not None and not is_constant(bias):
        return "the bias is computed, not a constant"
    if {*stride, *dilation} != {1}:
        return f"stride {list(stride)} and dilation {list(dilation)}; all must be 1"
    if groups != 1:
        return f"{groups} groups: not dense"
    if shape_of(conv)[2] == 1:
        return "one frame out: there is nothing to share between frames"
    return time_refusal(conv)


def _clip_transforms(m: int, t: _Transforms, sources: list[int], source_count: int) -> tuple[Tensor, Tensor]:
    """B (n * P, source frames) and A (output frames, n * P) for the whole clip, in float64."""
    positions = m + _TAPS - 1
    frames = len(sources) - _TAPS + 1
    tiles = -(-frames // m)
    inputs = torch.zeros(tiles, positions, source_count, dtype=torch.float64)
    outputs = torch.zeros(frames, tiles, positions, dtype=torch.float64)
    for tile in range(tiles):
        for i in range(positions):
            # Past the end any frame will do: only dropped outputs see it. The last one keeps values ordinary.
            inputs[tile, :, sources[min(tile * m + i, len(sources) - 1)]] += t.inputs[:, i]
        kept = min(m, frames - tile * m)
        outputs[tile * m : tile * m + kept, tile] = t.outputs[:kept]
    return inputs.flatten(0, 1), outputs.flatten(1, 2)


def _by_matmul(graph: Graph, matrix: Tensor, clip: fx.Node) -> fx.Node:
    x = graph.call(aten.reshape.default, clip, [matrix.shape[1], -1])
    return graph.call(aten.matmul.default, graph.constant(matrix), x)


def _by_convolution(graph: Graph, matrix: Tensor, clip: fx.Node) -> fx.Node:
    x = graph.call(aten.reshape.default, clip, [1, matrix.shape[1], -1, shape_of(clip)[3]])
    return graph.call(aten.conv2d.default, x, graph.constant(matrix[:, :, None, None]))


def _replace(
    m: int, combine: Callable[[Graph, Tensor, fx.Node], fx.Node], graph: Graph, match: tuple[fx.Node, ...]
) -> fx.Node:
    (conv,) = match
    bias = argument(conv, 2)
    weight = graph.value(conv.args[1])
    t = _transforms(m)
    positions = m + _TAPS - 1
    source, sources = source_frames(conv.args[0])
    inputs, outputs = _clip_transforms(m, t, sources, shape_of(source)[2])
    tiles = inputs.shape[0] // positions
    kernels = torch.einsum("pk,oikhw->poihw", t.kernel.to(weight.device), weight.double()).flatten(0, 1)
    if bias is not None:
        at_point = weight.new_zeros(positions, weight.shape[0], dtype=torch.float64)
        at_point[_BIAS_POSITION] = graph.value(bias).double() / t.outputs[0, _BIAS_POSITION]
        bias = graph.constant(at_point.flatten().to(weight.dtype))

    clip = to_frames(graph, source)
    _, channels, height, width = shape_of(clip)
    x = combine(graph, inputs.to(weight.dtype), clip)
    x = graph.call(aten.reshape.default, x, [tiles, positions * channels, height, width])
    x = convolve(graph, conv, x, graph.constant(kernels.to(weight.dtype)), bias, positions)
    x = combine(graph, outputs.to(weight.dtype), x)
    _, out_channels, out_frames, height, width = shape_of(conv)
    return from_frames(graph, graph.call(aten.reshape.default, x, [out_frames, out_channels, height, width]))


_CASES = (
    Case("as many frames as a tile has or fewer", conv3d(64, 48, 3), (1, 64, 4, 5, 6)),
    Case("three frames, replicated border", bordered(1, 1, 32, 32, 3), (1, 32, 3, 5, 6)),
    Case("no bias", conv3d(24, 32, 3, bias=False), (1, 24, 6, 5, 5)),
    Case("five frames, causal", bordered(2, 0, 32, 32, 3), (1, 32, 5, 4, 5)),
    Case("tiles with a tail", bordered(1, 1, 32, 32, 3), (1, 32, 7, 4, 5)),
    Case("no padding in space", conv3d(32, 32, 3, padding=0), (1, 32, 11, 5, 6)),
    Case("pointwise in space", conv3d(256, 256, (3, 1, 1), padding=0), (1, 256, 7, 3, 4)),
)
NEAR_MISSES = (
    Case("one frame", bordered(1, 1, 32, 32, 3), (1, 32, 1, 5, 5), 0, "one frame out"),
    Case("five taps", bordered(2, 2, 32, 32, 5), (1, 32, 3, 5, 5), 0),
    Case("zero padding in time", conv3d(32, 32, 3, padding=1), (1, 32, 4, 5, 5), 0, "zero padding of 1 in time"),
    Case("depthwise", bordered(1, 1, 32, 32, 3, groups=32), (1, 32, 4, 5, 5), 0, "32 groups"),
    Case("stride", conv3d(32, 32, 3, stride=(1, 2, 2)), (1, 32, 4, 6, 6), 0, "stride [1, 2, 2]"),
    Case("dilation", conv3d(32, 32, 3, dilation=2), (1, 32, 8, 8, 8), 0, "dilation [2, 2, 2]"),
    Case("batch of two", conv3d(32, 32, 3), (2, 32, 4, 5, 5), 0, "batch of 2"),
)


def _rewrite(m: int, suffix: str, why: str, combine: Callable[[Graph, Tensor, fx.Node], fx.Node]) -> Rewrite:
    name = f"winograd_f{m}{suffix}"
    # Tile sizes share their code: one of them is put through all of it.
    cases = _CASES if m == 3 else _CASES[-3:]
    return Rewrite(name, why, match, check, partial(_replace, m, combine), cases, NEAR_MISSES)


# One rewrite a tile size, for a target's `Choice`.
REWRITES = tuple(
    _rewrite(
        m,
        "",
        "Dense convolutions run at the CPU's multiply-add rate in every plain lowering: only fewer multiply-adds "
        "help. In onnxruntime F(3, 3) and F(5, 3) in this form ran 1.3 to 2.1 times as fast as conv3d for 16 to "
        "512 channels; with one convolution per position, 1.0 to 1.6 times.",
        _by_matmul,
    )
    for m in _TILES
)
POINTWISE = tuple(
    _rewrite(
        m,
        "_pointwise",
        "XNNPACK delegates no product with a constant matrix on the left: each would be left to ExecuTorch's "
        "portable kernel and split the delegate. A 1x1 convolution that combines frames stays inside.",
        _by_convolution,
    )
    for m in _TILES
)
