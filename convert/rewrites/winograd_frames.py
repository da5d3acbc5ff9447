"""Dense 3D convolution with 3 time taps by Winograd's minimal filtering F(2, 3) and F(3, 3), frame by frame.

    before   conv3d(x; W (O, I, 3, kh, kw), b)                      x, y: NCTHW, batch 1
    after    d_i = frame i of to_frames(x)                          (1, I, H, W)
             z_p = conv2d(sums of a tile's d_i; W'_p)               one convolution for each position of each tile
             frame t = sums of its tile's z_p                       (1, O, H', W')
             cat(frames), then from_frames

The mathematics is that of `temporal_winograd`, tile by tile in place of one grouped convolution, and frames are
combined by additions and subtractions alone. Nothing is reshaped, so that a runtime whose convolutions want
channels last changes no layout between them, and a tile's few frames stay in the processor's caches. It takes ten
times the nodes. Tiles are of 3 frames, and of 2 at the end: larger ones need factors that no short sums give.

Exact in real arithmetic; not for fp16, as `temporal_winograd`, where the source is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..graph.rewrite import Case, Graph, Rewrite, argument, shape_of
from .cases import conv3d
from .frames import aten, convolve, from_frames, summed, to_frames
from .merge_border_taps import bordered, copied_frames
from .temporal_winograd import NEAR_MISSES, check, match

Frames = list[fx.Node]


class _Sums:
    """Sums of frames, as nodes of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def add(self, *frames: fx.Node) -> fx.Node:
        return summed(self._graph, frames)

    def sub(self, first: fx.Node, *others: fx.Node) -> fx.Node:
        for other in others:
            first = self._graph.call(aten.sub.Tensor, first, other)
        return first


def _inputs_2(sums: _Sums, d: Sequence[fx.Node]) -> Frames:
    return [sums.sub(d[0], d[2]), sums.add(d[1], d[2]), sums.sub(d[2], d[1]), sums.sub(d[1], d[3])]


def _outputs_2(sums: _Sums, z: Sequence[fx.Node]) -> Frames:
    return [sums.add(z[0], z[1], z[2]), sums.sub(z[1], z[2], z[3])]


def _inputs_3(sums: _Sums, d: Sequence[fx.Node]) -> Frames:
    # 2 and 3 times a frame are sums too: XNNPACK adds as fast as it multiplies.
    far, near, inner = sums.sub(d[3], d[1]), sums.sub(d[0], d[2]), sums.sub(d[1], d[2])
    return [
        sums.add(near, near, far),
        sums.sub(far, d[1], d[2]),
        sums.add(far, inner, inner, inner),
        far,
        sums.sub(d[4], d[2], far, far),
    ]


def _outputs_3(sums: _Sums, z: Sequence[fx.Node]) -> Frames:
    even, twice = sums.add(z[1], z[2]), sums.add(z[3], z[3])
    return [
        sums.add(z[0], even, z[3]),
        sums.add(sums.sub(z[1], z[2]), twice),
        sums.add(even, twice, twice, z[4]),
    ]


@dataclass(frozen=True)
class _Tile:
    """F(m, 3).

    Attributes:
        kernel: (m + 2, 3), combinations of the taps.
        inputs: from m + 2 frames to what the positions convolve.
        outputs: from the positions' results to m frames.
    """

    kernel: Tensor
    inputs: Callable[[_Sums, Sequence[fx.Node]], Frames]
    outputs: Callable[[_Sums, Sequence[fx.Node]], Frames]


# Every output frame has it once, so the bias rides on it.
_BIAS_POSITION = 1
_TILES = {
    # Interpolated at 0, 1, -1 and infinity.
    2: _Tile(
        torch.tensor([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], dtype=torch.float64) / 2,
        _inputs_2,
        _outputs_2,
    ),
    # Interpolated at 0, 1, -1, 2 and infinity.
    3: _Tile(
        torch.tensor([[3, 0, 0], [-3, -3, -3], [-1, 1, -1], [1, 2, 4], [0, 0, 6]], dtype=torch.float64) / 6,
        _inputs_3,
        _outputs_3,
    ),
}


def _tiles(frames: int) -> list[int]:
    """Sizes of tiles that `frames` fill: of 3, and what is left over in tiles of 2."""
    twos = -frames % 3
    return [3] * ((frames - 2 * twos) // 3) + [2] * twos


def _replace(graph: Graph, matched: tuple[fx.Node, ...]) -> fx.Node:
    (conv,) = matched
    bias = argument(conv, 2)
    weight = graph.value(conv.args[1])
    sizes = _tiles(shape_of(conv)[2])

    def kernel(combination: Tensor) -> fx.Node:
        taps = torch.einsum("k,oikhw->oihw", combination.to(weight.device), weight.double())
        return graph.constant(taps.to(weight.dtype))

    kernels = {size: [kernel(row) for row in _TILES[size].kernel] for size in sorted(set(sizes))}
    clips: dict[fx.Node, fx.Node] = {}
    apart: dict[tuple[fx.Node, int], fx.Node] = {}

    def frame(source: fx.Node, index: int) -> fx.Node:
        if source not in clips:
            clips[source] = to_frames(graph, source)
        if (source, index) not in apart:
            apart[source, index] = graph.call(aten.slice.Tensor, clips[source], 0, index, index + 1)
        return apart[source, index]

    sources = copied_frames(conv.args[0])
    sums = _Sums(graph)
    out: Frames = []
    for size in sizes:
        tile = _TILES[size]
        frames = [frame(*source) for source in sources[len(out) : len(out) + size + 2]]
        positions = [
            convolve(graph, conv, x, kernels[size][position], bias if position == _BIAS_POSITION else None)
            for position, x in enumerate(tile.inputs(sums, frames))
        ]
        out += tile.outputs(sums, positions)
    return from_frames(graph, graph.call(aten.cat.default, out, 0))


class _AfterState(nn.Module):
    """Case: a convolution over the last two frames of what went before and over new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv3d(16, 16, 3)()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([x.relu()[:, :, -2:], x], 2))


REWRITE = Rewrite(
    name="winograd_frames",
    why=(
        "XNNPACK convolves channels last and combines frames in another layout, so one grouped convolution for all "
        "tiles changes layouts eight times. Frame by frame, 9 frames of 256x256 with 16 channels took 0.68 of its "
        "time and 0.69 of one convolution per tap's, of 64x64 with 64 channels 0.81 and 0.60."
    ),
    match=match,
    check=check,
    replace=_replace,
    cases=(
        Case("as many frames as a tile has", conv3d(24, 16, 3), (1, 24, 5, 5, 6)),
        Case("fewer, replicated border", bordered(1, 1, 16, 16, 3), (1, 16, 2, 5, 6)),
        Case("tiles with a tail", bordered(1, 1, 16, 16, 3), (1, 16, 8, 5, 6)),
        Case(
            "a tail of two tiles, causal, no bias",
            bordered(2, 0, 16, 24, 3, bias=False),
            (1, 16, 7, 4, 5),
        ),
        Case("frames of two clips", _AfterState, (1, 16, 9, 4, 5)),
        Case("no padding in space", conv3d(16, 16, 3, padding=0), (1, 16, 6, 5, 6)),
    ),
    near_misses=NEAR_MISSES,
)
