"""Decoders in blocks, as LTX-Video's and those made from it: `conv_in`, `mid_block`, `up_blocks`, then a tail.

Every tensor is NCTHW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..decoder import Decoder
from ..latents import LatentSpec
from ..layers import Chain, Layer, declared
from ..statistics import LatentStatistics


class Block(nn.Module):
    """Layers that run in this order: `conv_in`, `upsamplers`, `resnets`. A block has some of them."""

    def layers(self) -> dict[str, Layer]:
        """The layers, by their names in this module."""
        parts: dict[str, Any] = {"conv_in": self.conv_in} if hasattr(self, "conv_in") else {}
        for name in ("upsamplers", "resnets"):
            parts |= {f"{name}.{i}": module for i, module in enumerate(getattr(self, name, ()))}
        return {name: declared(module) for name, module in parts.items()}

    def forward(self, x: Tensor, **upsampling: Any) -> Tensor:
        """The layers one after the other; `upsampling` are options of the upsamplers."""
        for name in self.layers():
            options = upsampling if name.startswith("upsamplers") else {}
            x = self.get_submodule(name)(x, **options)  # by the module, whose name captured graphs then know
        return x


class BlockDecoder(Decoder):
    """A decoder whose subclass makes `conv_in`, `mid_block` and `up_blocks`, and declares the tail."""

    conv_in: nn.Module
    mid_block: Block
    up_blocks: nn.ModuleList

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes."""
        spec: LatentSpec = self.config.spec
        return spec

    @property
    def statistics(self) -> LatentStatistics | None:
        """How a diffusion model normalises these latents, where checkpoint or configuration say so."""
        found = replace(self.stored_statistics or LatentStatistics(), scaling=self.config.scaling_factor)
        return None if found.is_identity else found

    def tail(self) -> Sequence[Layer]:
        """What comes behind the last block."""
        raise NotImplementedError

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, C, T', H', W') to frames (N, 3, T, H, W); sizes are not checked."""
        return self.decode_with_features(latents)[0]

    def decode_with_features(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, with the feature maps that distillation aligns: `mid_block`, `up_block_0`, ..."""
        return self._decode(latents)

    def layers(self) -> dict[str, Layer]:
        """What the decoder computes, by the names of its modules; `tail` is all behind the last block."""
        blocks = {
            f"{name}.{part}": layer for name, block in self._blocks() for part, layer in block.layers().items()
        }
        return {"conv_in": declared(self.conv_in), **blocks, "tail": Chain(tuple(self.tail()))}

    def _decode(self, latents: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Frames and feature maps; `options` are the blocks' own."""
        x = self.conv_in(latents)
        features = {}
        for name, block in self._blocks():
            x = features[name.replace("blocks.", "block_")] = block(x, **options)
        return Chain(tuple(self.tail()))(x), features

    def _blocks(self) -> list[tuple[str, Block]]:
        up_blocks: list[Any] = list(self.up_blocks)
        return [("mid_block", self.mid_block), *((f"up_blocks.{i}", block) for i, block in enumerate(up_blocks))]
