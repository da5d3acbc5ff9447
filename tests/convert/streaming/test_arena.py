"""The allocator that is run on sizes alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from handheld.convert.graph.rewrite import capture
from handheld.convert.streaming.arena import Arena, arena_bytes

MIB = 1 << 20


def test_regions_grow_and_count_up_to_the_last_byte_that_was_written() -> None:
    arena = Arena()
    arena.take(3 * MIB)  # in a region of 4
    assert arena.touched_bytes == 3 * MIB
    arena.take(3 * MIB)  # the 1 that is left does not do
    assert arena.touched_bytes == 6 * MIB
    arena.take(9 * MIB)  # the next region would be of 8
    assert arena.touched_bytes == 15 * MIB
    arena.take(20 * MIB)  # of 32, which holds the next one as well
    arena.take(12 * MIB)
    assert arena.touched_bytes == 47 * MIB


def test_what_is_larger_than_the_largest_region_gets_one_of_its_own_size() -> None:
    arena = Arena()
    arena.take(1000 * MIB)  # in a region of 1 GiB, as large as they get
    arena.release(arena.take(1500 * MIB))
    arena.take(600 * MIB)
    arena.take(900 * MIB)  # what is left of the 1500
    assert arena.touched_bytes == 2500 * MIB
    arena.take(20 * MIB)
    arena.take(1100 * MIB)
    assert arena.touched_bytes == 2500 * MIB + 20 * MIB + 1100 * MIB


def test_free_blocks_are_split_and_put_together_again() -> None:
    arena = Arena()
    blocks = [arena.take(2 * MIB) for _ in range(3)]  # in regions of 2, 2 and 4
    assert arena.touched_bytes == 6 * MIB
    for block in blocks:
        arena.release(block)
    arena.take(1 * MIB)  # of the first region
    arena.take(4 * MIB)  # the block of 2 and the free one behind it
    arena.take(1 * MIB)  # what the first one left
    assert arena.touched_bytes == 2 * MIB + 2 * MIB + 4 * MIB


def test_a_block_of_less_than_twice_the_size_is_given_whole() -> None:
    arena = Arena()
    arena.release(arena.take(8 * MIB))
    arena.take(5 * MIB)
    arena.take(2 * MIB)
    assert arena.touched_bytes == 8 * MIB + 2 * MIB


class Chain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ((x * 2).exp() + 1).exp()


def test_activations_take_turns_and_the_output_is_copied() -> None:
    graph = capture(Chain(), (torch.empty(MIB, device="cpu"),))  # 4 MiB each
    assert arena_bytes(graph, torch.float32) == 2 * 4 * MIB + 4 * MIB
    assert arena_bytes(graph, torch.float16) == 2 * 2 * MIB + 2 * MIB
