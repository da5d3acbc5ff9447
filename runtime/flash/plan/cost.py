"""What a token costs: I/O + memory management + arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .device import Device


@dataclass(frozen=True)
class Traffic:
    """What a layer, or a token, moves.

    read_sizes: bytes of each read from storage. moved_bytes: copied within memory, into the table and to close its
    holes. computed_bytes: of weights that take part in arithmetic.
    """

    read_sizes: Sequence[int]
    moved_bytes: int = 0
    computed_bytes: int = 0


@dataclass(frozen=True)
class TokenCost:
    """Seconds of each part; None where the device has no figure for it."""

    io_s: float
    memory_s: float | None
    compute_s: float | None

    @property
    def known_s(self) -> float:
        """The sum of the parts that are known. Parts are not overlapped, as in the paper."""
        return self.io_s + (self.memory_s or 0.0) + (self.compute_s or 0.0)

    def __add__(self, other: TokenCost) -> TokenCost:
        return TokenCost(
            self.io_s + other.io_s, _sum(self.memory_s, other.memory_s), _sum(self.compute_s, other.compute_s)
        )


def token_cost(device: Device, traffic: Traffic, threads: int = 32) -> TokenCost:
    """The cost of traffic whose reads are in flight together, at most `threads` at a time."""
    in_flight = min(threads, len(traffic.read_sizes))
    rates = {size: device.storage.bytes_per_s(size, in_flight) for size in set(traffic.read_sizes)}
    return TokenCost(
        io_s=sum(size / rates[size] for size in traffic.read_sizes),
        memory_s=_seconds(traffic.moved_bytes, device.copy_bytes_per_s),
        compute_s=_seconds(traffic.computed_bytes, device.compute_bytes_per_s),
    )


def _seconds(amount: int, rate: float | None) -> float | None:
    return None if rate is None else amount / rate


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
