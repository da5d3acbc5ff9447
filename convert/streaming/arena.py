"""What onnxruntime holds for the activations of a graph: its allocator, run on sizes alone.

The arena asks the system for regions, each twice as large as the one before up to 1 GiB, and keeps them. A tensor
takes the smallest free block that holds it and gives the rest of that back, unless it is little; free neighbours
become one block. What was never written to takes no memory, so that a region counts up to the last byte that a
tensor had.

Our sessions turn off onnxruntime's planning and reuse of buffers: each tensor is taken and given back by itself.

Source: onnxruntime 1.31, core/framework/bfc_arena.cc, with its defaults (`kNextPowerOfTwo`), and the
`max_power_of_two_extend_bytes` of 1.32.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from ..graph.memory import lifetimes

_FIRST_REGION = 1 << 20
# What is at least as large gets a region of its own size.
_LARGEST_REGION = 1 << 30
_ALIGNMENT = 256
# A block of less than twice the size that is asked for is given whole, unless this much would lie idle.
_MOST_IDLE = 128 << 20


def arena_bytes(module: fx.GraphModule, dtype: torch.dtype) -> int:
    """Bytes that the activations of one run come to, with the outputs' copies for the caller.

    Args:
        dtype: in which the artefact holds what the graph has in fp32.
    """
    written = [tensor for tensor in lifetimes(module, dtype) if tensor.node.op != "placeholder"]
    events = [(tensor.first, False, index) for index, tensor in enumerate(written)]
    events += [(tensor.last, True, index) for index, tensor in enumerate(written)]
    arena = Arena()
    taken: dict[int, _Block] = {}
    for _, ends, index in sorted(events):  # a node writes before what it reads goes
        if ends:
            arena.release(taken.pop(index))
        else:
            taken[index] = arena.take(written[index].size_bytes)
    return arena.touched_bytes + sum(tensor.size_bytes for tensor in written if tensor.outer)


@dataclass(eq=False)
class _Region:
    blocks: list[_Block] = field(default_factory=list)  # by address
    touched_bytes: int = 0


@dataclass(eq=False)
class _Block:
    region: _Region
    start: int
    size: int
    free: bool = True


class Arena:
    """The allocator: blocks of regions, and how much of these was ever written to."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []
        self._next_size = _FIRST_REGION

    @property
    def touched_bytes(self) -> int:
        return sum(region.touched_bytes for region in self._regions)

    def take(self, size: int) -> _Block:
        size = -(-size // _ALIGNMENT) * _ALIGNMENT
        blocks = (block for region in self._regions for block in region.blocks)
        fitting = (block for block in blocks if block.free and block.size >= size)
        block = min(fitting, key=lambda block: block.size, default=None) or self._grow(size)
        region, rest = block.region, block.size - size
        if rest >= min(size, _MOST_IDLE):
            block.size = size
            place = region.blocks.index(block) + 1
            region.blocks.insert(place, _Block(region, block.start + size, rest))
        block.free = False
        region.touched_bytes = max(region.touched_bytes, block.start + size)
        return block

    def release(self, block: _Block) -> None:
        blocks = block.region.blocks
        block.free = True
        place = blocks.index(block)
        for first, second in ((place, place + 1), (place - 1, place)):
            if first >= 0 and second < len(blocks) and blocks[first].free and blocks[second].free:
                blocks[first].size += blocks.pop(second).size

    def _grow(self, size: int) -> _Block:
        grown = size
        if size < _LARGEST_REGION:
            doubles = self._next_size >= size
            while self._next_size < size:
                self._next_size *= 2
            grown = self._next_size
            if doubles:
                self._next_size = min(2 * grown, _LARGEST_REGION)
        region = _Region()
        region.blocks.append(_Block(region, 0, grown))
        self._regions.append(region)
        return region.blocks[0]
