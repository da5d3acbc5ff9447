"""Dense 3D convolution with 3 time taps by Winograd's minimal filtering F(m, 3) along time.

    before      conv3d(x; W (O, I, 3, kh, kw), b)                             x, y: NCTHW, batch 1

    REWRITES    u = B @ to_frames(x)                 (n * P, I, H, W)         every tile's P inputs
                z = conv2d(u; W', b', groups=P)      (n, P*I, H, W) -> (n, P*O, H', W')
                y = A @ z                            (T, O, H', W'), then from_frames

    SUMS        x_i = cat([x[i], x[i + m], ...])     (n, I, H, W)             every tile's i-th frame
                u_p = b1 * x_i + b2 * x_j + ...      (n, I, H, W)             for each position p
                z_p = conv2d(u_p; W'_p, b'_p)        (n, O, H', W')
                y_k = a1 * z_1 + a2 * z_2 + ...      (n, O, H', W'), then slices, cat and from_frames

n tiles of m frames cover the clip, and each tile costs P = m + 2 convolutions of a frame in place of 3 * m: F(2, 3)
4 for 6, F(3, 3) 5 for 9, F(4, 3) 6 for 12, F(5, 3) 7 for 15. W' are fixed combinations of the three taps, B and A
of frames. They also hold the copies of border frames before the convolution and drop the frames that the last tile
has over; the bias rides on the position of point 1, which every output frame has once. `REWRITES` make all
positions one grouped convolution and combine frames by a product with a constant matrix; `SUMS` keep to
convolutions of their own and sums of frames, in which no layout changes.

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

from ..rewrite import Case, Graph, Rewrite, argument, is_call, is_constant, shape_of
from .cases import conv3d
from .frames import aten, batch_refusal, from_frames, to_frames
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

    def in_few_products(self) -> _Transforms:
        """The same, scaled so that most entries of the outermost matrices that are not 0 are 1 or -1."""
        rows = torch.tensor([[_commonest(row)] for row in self.inputs], dtype=torch.float64)
        columns = torch.tensor([[_commonest(column) for column in self.outputs.T]], dtype=torch.float64)
        return _Transforms(
            (self.outputs / columns).round(decimals=9),
            self.kernel * rows * columns.T,
            (self.inputs / rows).round(decimals=9),
        )


def _commonest(entries: Tensor) -> float:
    """The absolute value that most entries have, besides 0."""
    sizes = entries[entries.abs() > 1e-9].abs()
    same = (sizes[:, None] - sizes).abs() < 1e-9
    return sizes[same.sum(1).argmax()].item()


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


def _match(node: fx.Node) -> tuple[fx.Node, ...] | None:
    if not is_call(node, aten.conv3d.default) or shape_of(node.args[1])[2] != _TAPS:
        return None
    return (node,)


def _check(match: tuple[fx.Node, ...]) -> str | None:
    (conv,) = match
    stride, padding, dilation, groups = (argument(conv, i) for i in (3, 4, 5, 6))
    if not all(is_constant(p) for p in (conv.args[1], argument(conv, 2)) if p is not None):
        return "the weight or bias is computed, not a constant"
    if isinstance(padding, str) or padding[0]:
        return f"padding {padding!r}: only numbers, and none in time"
    if {*stride, *dilation} != {1}:
        return f"stride {list(stride)} and dilation {list(dilation)}; all must be 1"
    if groups != 1:
        return f"{groups} groups: not dense"
    if shape_of(conv)[2] == 1:
        return "one frame out: there is nothing to share between frames"
    return batch_refusal(conv.args[0])


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


def _kernels(t: _Transforms, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """W' (P, O, I, kh, kw), and b' (P, O) if there is a bias, in float64."""
    kernels = torch.einsum("pk,oikhw->poihw", t.kernel.to(weight.device), weight.double())
    if bias is None:
        return kernels, None
    at_point = weight.new_zeros(kernels.shape[:2], dtype=torch.float64)
    at_point[_BIAS_POSITION] = bias.double() / t.outputs[0, _BIAS_POSITION]
    return kernels, at_point


def _by_matmul(m: int, graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (conv,) = match
    bias_node, *window = (argument(conv, i) for i in (2, 3, 4, 5))
    weight, bias = graph.value(conv.args[1]), graph.value(bias_node) if bias_node is not None else None
    t = _transforms(m)
    positions = m + _TAPS - 1
    source, sources = source_frames(conv.args[0])
    inputs, outputs = _clip_transforms(m, t, sources, shape_of(source)[2])
    tiles = inputs.shape[0] // positions
    kernels, bias = _kernels(t, weight, bias)

    def combine(matrix: Tensor, frames: fx.Node) -> fx.Node:
        x = graph.call(aten.reshape.default, frames, [matrix.shape[1], -1])
        return graph.call(aten.matmul.default, graph.constant(matrix.to(weight.dtype)), x)

    clip = to_frames(graph, source)
    _, channels, height, width = shape_of(clip)
    x = combine(inputs, clip)
    x = graph.call(aten.reshape.default, x, [tiles, positions * channels, height, width])
    x = graph.call(
        aten.conv2d.default,
        x,
        graph.constant(kernels.flatten(0, 1).to(weight.dtype)),
        None if bias is None else graph.constant(bias.flatten().to(weight.dtype)),
        *(list(sizes[1:]) for sizes in window),
        positions,
    )
    x = combine(outputs, x)
    _, out_channels, out_frames, height, width = shape_of(conv)
    return from_frames(graph, graph.call(aten.reshape.default, x, [out_frames, out_channels, height, width]))


def _by_sums(m: int, graph: Graph, match: tuple[fx.Node, ...]) -> fx.Node:
    (conv,) = match
    bias_node, *window = (argument(conv, i) for i in (2, 3, 4, 5))
    weight, bias = graph.value(conv.args[1]), graph.value(bias_node) if bias_node is not None else None
    transforms = _transforms(m).in_few_products()
    kernels, bias = _kernels(transforms, weight, bias)
    kernel_nodes = [graph.constant(kernel.to(weight.dtype)) for kernel in kernels]
    biases: list[fx.Node | None] = [None] * len(kernel_nodes)
    if bias is not None:
        biases[_BIAS_POSITION] = graph.constant(bias[_BIAS_POSITION].to(weight.dtype))

    source, sources = source_frames(conv.args[0])
    clip = to_frames(graph, source)
    apart = [graph.call(aten.slice.Tensor, clip, 0, i, i + 1) for i in range(shape_of(clip)[0])]

    def all_tiles(frames: list[fx.Node]) -> fx.Node:
        return frames[0] if len(frames) == 1 else graph.call(aten.cat.default, frames, 0)

    frames = shape_of(conv)[2]
    tiles = range(-(-frames // m))
    # Past the end any frame will do: only dropped outputs see it.
    x = [
        all_tiles([apart[sources[min(tile * m + i, len(sources) - 1)]] for tile in tiles])
        for i in range(len(kernel_nodes))
    ]
    z = [
        graph.call(aten.conv2d.default, _sum(graph, row, x), w, b, *(list(sizes[1:]) for sizes in window))
        for row, w, b in zip(transforms.inputs.tolist(), kernel_nodes, biases)
    ]
    y = [_sum(graph, row, z) for row in transforms.outputs.tolist()]
    if len(tiles) > 1:
        y = [graph.call(aten.slice.Tensor, y[t % m], 0, t // m, t // m + 1) for t in range(frames)]
    return from_frames(graph, all_tiles(y[:frames]))


def _sum(graph: Graph, factors: list[float], frames: list[fx.Node]) -> fx.Node:
    """Sum of the frames times their factors, at least one not 0; frames of one factor share a product."""
    alike: dict[float, list[tuple[bool, fx.Node]]] = {}
    for factor, x in zip(factors, frames):
        if factor != 0:
            alike.setdefault(abs(factor), []).append((factor < 0, x))
    total: fx.Node | None = None
    # Positive ones first, here and below: there is no negation to start with.
    for size, terms in sorted(alike.items(), key=lambda group: all(negative for negative, _ in group[1])):
        (negative, part), *others = sorted(terms, key=lambda term: term[0])
        for other_negative, x in others:
            part = graph.call(aten.add.Tensor if other_negative == negative else aten.sub.Tensor, part, x)
        scale = -size if negative and total is None else size
        part = part if scale == 1 else graph.call(aten.mul.Tensor, part, scale)
        if total is None:
            total = part
        else:
            total = graph.call(aten.sub.Tensor if negative else aten.add.Tensor, total, part)
    assert total is not None  # no row of the transforms is empty
    return total


_CASES = (
    Case("as many frames as a tile has or fewer", conv3d(64, 48, 3), (1, 64, 4, 5, 6)),
    Case("three frames, replicated border", bordered(1, 1, 32, 32, 3), (1, 32, 3, 5, 6)),
    Case("no bias", conv3d(24, 32, 3, bias=False), (1, 24, 6, 5, 5)),
    Case("five frames, causal", bordered(2, 0, 32, 32, 3), (1, 32, 5, 4, 5)),
    Case("tiles with a tail", bordered(1, 1, 32, 32, 3), (1, 32, 7, 4, 5)),
    Case("no padding in space", conv3d(32, 32, 3, padding=0), (1, 32, 11, 5, 6)),
    Case("pointwise in space", conv3d(256, 256, (3, 1, 1), padding=0), (1, 256, 7, 3, 4)),
)
_NEAR_MISSES = (
    Case("one frame", bordered(1, 1, 32, 32, 3), (1, 32, 1, 5, 5), 0, "one frame out"),
    Case("five taps", bordered(2, 2, 32, 32, 5), (1, 32, 3, 5, 5), 0),
    Case("zero padding in time", conv3d(32, 32, 3, padding=1), (1, 32, 4, 5, 5), 0, "none in time"),
    Case("depthwise", bordered(1, 1, 32, 32, 3, groups=32), (1, 32, 4, 5, 5), 0, "32 groups"),
    Case("stride", conv3d(32, 32, 3, stride=(1, 2, 2)), (1, 32, 4, 6, 6), 0, "stride [1, 2, 2]"),
    Case("dilation", conv3d(32, 32, 3, dilation=2), (1, 32, 8, 8, 8), 0, "dilation [2, 2, 2]"),
    Case("batch of two", conv3d(32, 32, 3), (2, 32, 4, 5, 5), 0, "batch of 2"),
)


_Replace = Callable[[int, Graph, tuple[fx.Node, ...]], fx.Node]


def _rewrite(m: int, suffix: str, why: str, substitute: _Replace) -> Rewrite:
    name = f"winograd_f{m}{suffix}"
    # Tile sizes share their code: one of them is put through all of it.
    cases = _CASES if m == 3 else _CASES[-3:]
    return Rewrite(name, why, _match, _check, partial(substitute, m), cases, _NEAR_MISSES)


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
SUMS = tuple(
    _rewrite(
        m,
        "_sums",
        "XNNPACK delegates no product with a constant matrix on the left, and a 1x1 convolution of frames as "
        "channels costs eight changes of layout a layer. Its grouped convolution is slower than as many dense "
        "ones: F(3, 3), with a convolution per tile, ran 2.0 and 1.7 times as fast as that for 16 and 32 channels, "
        "9 frames of 256x256 and 128x128.",
        _by_sums,
    )
    for m in _TILES
)
