"""Palettes: a weight as indices into a table of values, one for the whole or for each group of channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDS = 200


@dataclass(frozen=True)
class Palette:
    """A palettised weight.

    Attributes:
        indices: uint8, of the weight's shape (O, ...).
        tables: (groups, 2**bits), in the weight's dtype; group g holds output channels g * O / groups and on.
    """

    indices: Tensor
    tables: Tensor

    def dense(self) -> Tensor:
        """The weight that it stands for."""
        groups = len(self.tables)
        rows = self.indices.reshape(groups, -1).long()
        return self.tables.gather(1, rows).reshape(self.indices.shape)


def palettise(weight: Tensor, bits: int, group: int | None = None) -> Palette:
    """Find the tables of least squared error, by k-means in one dimension.

    Args:
        weight: (O, ...), floating point. The tables are rounded to its dtype.
        bits: of an index, 1 to 8.
        group: output channels that share a table; None, or a number that does not divide O, is one table for all.
    """
    channels = weight.shape[0]
    groups = channels // group if group and channels % group == 0 else 1
    rows = weight.detach().double().reshape(groups, -1)
    # Indices are found among the tables as they are stored: rounding moves the borders between two values.
    tables = _centroids(rows, 2**bits).to(weight.dtype)
    ordered = tables.double()
    indices = torch.searchsorted((ordered[:, 1:] + ordered[:, :-1]).contiguous() / 2, rows)
    return Palette(indices.to(torch.uint8).reshape(weight.shape), tables)


def _centroids(rows: Tensor, count: int) -> Tensor:
    """(groups, count) ascending: of each row of values the centroids of least squared error, by Lloyd's rounds.

    In one dimension a centroid's values lie side by side in the sorted row: sums come from a running sum.
    """
    ordered = rows.sort(1).values
    groups, length = ordered.shape
    running = torch.cat([ordered.new_zeros(groups, 1), ordered.cumsum(1)], 1)
    centroids = _start(ordered, count)
    ends = ordered.new_tensor([0, length]).long().expand(groups, 2)
    for _ in range(_ROUNDS):
        borders = torch.searchsorted(ordered, (centroids[:, 1:] + centroids[:, :-1]) / 2)
        edges = torch.cat([ends[:, :1], borders, ends[:, 1:]], 1)
        held = edges.diff(dim=1)
        means = running.gather(1, edges).diff(dim=1) / held.clamp(min=1)
        # A centroid without values stays where it is: between its neighbours, so the order holds.
        found = torch.where(held > 0, means, centroids)
        if torch.equal(found, centroids):
            break
        centroids = found
    return centroids


def _start(ordered: Tensor, count: int) -> Tensor:
    """First centroids: as dense as the cube root of the values' density, which is best for many centroids.

    Between two different values the density is how often they are there over the gap between them (Panter and Dite,
    "Quantization distortion in pulse-count modulation", 1951).
    """
    starts = []
    for row in ordered:
        values, times = row.unique_consecutive(return_counts=True)
        if len(values) <= count:  # each value gets its own
            starts.append(torch.cat([values, values[-1:].expand(count - len(values))]))
            continue
        gaps = values.diff()
        between = (times[1:] + times[:-1]).to(row.dtype) / 2
        passed = (gaps * (between / gaps) ** (1 / 3)).cumsum(0)
        wanted = (torch.arange(count, dtype=row.dtype) + 0.5) / count * passed[-1]
        starts.append(values[torch.searchsorted(passed, wanted).clamp(max=len(gaps))])
    return torch.stack(starts).contiguous()
