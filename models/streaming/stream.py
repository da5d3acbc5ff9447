"""Exact streaming decode: the frames of the whole-clip decode, in memory that does not grow with the clip.

The decoder runs depth first (`stages.py`). In strips of rows, the strips are decoded one after the other, each
through all of the clip: state and activations are those of one strip, and the frames of all strips but the last
wait in a temporary file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ModelError
from ..latents import LatentSpec
from ..layers import Layer
from .rows import Rows
from .spool import Spool
from .stages import ChainStage, chain_of


class Layered(Protocol):
    """A decoder that declares its layers, in order, by the names of its modules."""

    @property
    def spec(self) -> LatentSpec:
        """The latent space that it takes."""

    def layers(self) -> Mapping[str, Layer]:
        """Latents (N, C, T', H', W') to frames (N, 3, T, H, W), layer by layer."""


def stream_frames(model: Layered, latents: Tensor | Iterable[Tensor], chunk: int, strips: int) -> Iterator[Tensor]:
    """`Decoder.stream`. What can be checked without pulling latents is checked at the call."""
    for name, value, what in (
        ("chunk", chunk, "the number of latent frames to push at a time"),
        ("strips", strips, "the number of strips to decode a frame in"),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"{name} is {value!r}; {what} is needed, 1 or more.")
    if isinstance(latents, Tensor):
        _check(latents, model.spec, None)
        _check_strips(strips, latents, model.spec)
        latents = (latents,)
    elif not isinstance(latents, Iterable):
        raise ModelError(f"Latents are a {type(latents).__name__}; a tensor or an iterable of tensors is needed.")
    arriving = _checked(latents, model.spec)
    if strips == 1:
        return _stream(_chain(model), arriving, chunk)
    return _stream_strips(model, arriving, chunk, strips)


def _chain(model: Layered) -> ChainStage:
    return chain_of(list(model.layers().values()))


def _stream(chain: ChainStage, arriving: Iterable[Tensor], chunk: int) -> Iterator[Tensor]:
    for latents in arriving:  # outside no_grad: the caller's iterator may compute with gradients
        for piece in latents.split(chunk, dim=2):
            with torch.no_grad():
                frames = chain.push(piece)
            if frames is not None:
                yield frames
    yield from torch.no_grad()(chain.flush)()


def _stream_strips(model: Layered, arriving: Iterable[Tensor], chunk: int, strips: int) -> Iterator[Tensor]:
    latents = torch.cat(list(arriving), dim=2)
    _check_strips(strips, latents, model.spec)
    height = latents.shape[3] * model.spec.spatial
    edges = [height * i // strips for i in range(strips + 1)]
    with ExitStack() as stack:
        spools: list[Spool] = []
        for start, stop in pairwise(edges):
            chain = _chain(model)
            taken = chain.restrict(Rows(start, stop, height))
            pieces = _stream(chain, (latents[:, :, :, taken.start : taken.stop],), chunk)
            if stop < height:
                spools.append(stack.enter_context(Spool()))
                for piece in pieces:
                    spools[-1].write(piece)
            else:  # every strip comes in the same pieces of time
                for piece in pieces:
                    yield torch.cat([*(spool.read() for spool in spools), piece], dim=3)


def _checked(arriving: Iterable[Tensor], spec: LatentSpec) -> Iterator[Tensor]:
    first: Tensor | None = None
    for latents in arriving:
        _check(latents, spec, first)
        first = latents[:, :, :0] if first is None else first
        yield latents
    if first is None:
        raise ModelError("No latents to decode: the iterator ended before its first chunk; one or more are needed.")


def _check_strips(strips: int, latents: Tensor, spec: LatentSpec) -> None:
    rows = latents.shape[3] * spec.spatial
    if strips > rows:
        raise ModelError(f"strips is {strips}; these frames have {rows} rows, and a strip needs one or more.")


def _check(latents: Tensor, spec: LatentSpec, first: Tensor | None) -> None:
    """Refuse what the decoder does not take, and a chunk that does not continue the `first` one's clip."""
    if not isinstance(latents, Tensor):
        raise ModelError(f"A chunk of latents is a {type(latents).__name__}; a tensor is needed.")
    spec.check(latents)
    if first is None:
        return
    given = tuple(latents.shape)
    n, c, _, h, w = first.shape
    if given != (n, c, given[2], h, w):
        raise ModelError(
            f"A chunk of latents has shape {given} after a first one with ({n}, {c}, any, {h}, {w}); only the "
            "number of frames may differ within a clip. Start another stream for another clip."
        )
    if (latents.dtype, latents.device) != (first.dtype, first.device):
        raise ModelError(
            f"A chunk of latents is {latents.dtype} on {latents.device} after a first one that is {first.dtype} "
            f"on {first.device}; all chunks of a clip need the same."
        )
