"""The decoder's part of a TAEHV checkpoint, and the configuration that its shapes tell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...errors import ModelError
from .config import STAGES, TAEHVConfig

# A checkpoint of the whole model holds `encoder.*` and `decoder.*`; one that was distilled here, statistics too.
_OTHERS = ("encoder.", "latents_mean", "latents_std")
_OWN = "decoder."

# The decoder for MiniMax H3 (24 channels, patches of 2) has the same layers, but drops frames every five latents.
_H3 = (24, 2)


@dataclass(frozen=True)
class _Places:
    """Numbers that layers have among the children of a decoder."""

    first: int
    blocks: tuple[int, ...]
    grows: tuple[int, ...]
    convs: tuple[int, ...]
    last: int


def _places(variant: str, layers: int) -> _Places:
    # Between the blocks of two stages: base has doubling, growing, convolution; super has convolution, ReLU,
    # shuffle, growing.
    first, start, between, grow, conv = (0, 1, 4, 3, 0) if variant == "super" else (1, 3, 3, 1, 2)
    starts = [start + i * (layers + between) for i in range(STAGES)]
    ends = [begin + layers for begin in starts]
    return _Places(
        first,
        tuple(begin + i for begin in starts for i in range(layers)),
        tuple(end + grow for end in ends),
        tuple(end + conv for end in ends),
        ends[-1] + 4,
    )


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_OWN): value for name, value in state.items() if not name.startswith(_OTHERS)}


def own_weights(state: Mapping[str, Tensor], config: TAEHVConfig) -> dict[str, Tensor]:
    """The decoder's weights. Where a stage doubles no frames but its weights could, they make the later frame."""
    own = _own(state)
    for place, doubles in zip(_places(config.arch_variant, config.layers).grows, config.decoder_time_upscale):
        name = f"{place}.conv.weight"
        if name in own and not doubles and own[name].shape[0] == 2 * own[name].shape[1]:
            own[name] = own[name][own[name].shape[1] :]
    return own


def config_of(state: Mapping[str, Tensor]) -> TAEHVConfig | None:
    """The configuration of a checkpoint, told from names and shapes; None for weights of another architecture.

    Weights do not tell whether a base decoder's stages double height and width: all of them do, as released.

    Raises ModelError for the decoder of MiniMax H3.
    """
    shapes = {name: tuple(value.shape) for name, value in _own(state).items()}
    blocks = sorted(int(found[1]) for name in shapes if (found := re.fullmatch(r"(\d+)\.conv\.0\.weight", name)))
    layers, rest = divmod(len(blocks), STAGES)
    variant = "super" if blocks[:1] == [1] else "base"
    at = _places(variant, layers)
    wanted = [f"{i}.weight" for i in (at.first, *at.convs, at.last)] + [f"{i}.conv.weight" for i in at.grows]
    if rest or not layers or tuple(blocks) != at.blocks or not all(len(shapes.get(n, ())) == 4 for n in wanted):
        return None
    width, latent_channels = shapes[f"{at.first}.weight"][:2]
    block = (2 * width, 1) if variant == "super" else (width, 2 * width)
    if shapes[f"{blocks[0]}.conv.0.weight"][:2] != block:
        return None
    grows = [shapes[f"{i}.conv.weight"][:2] for i in at.grows]
    outs = [shapes[f"{i}.weight"][0] for i in at.convs]
    patch_size = math.isqrt(shapes[f"{at.last}.weight"][0] // 3)
    if (latent_channels, patch_size) == _H3:
        raise ModelError(
            "These are weights of TAEHV for MiniMax H3, whose clips are cut into chunks of five latent frames. "
            "That rule is not supported; the decoders for HunyuanVideo, Wan and LTX are."
        )
    later = [c for _, c in grows] if variant == "super" else outs
    space = [out == 4 * c for out, c in zip(outs, later)] if variant == "super" else [True] * STAGES
    return TAEHVConfig(
        latent_channels=latent_channels,
        patch_size=patch_size,
        arch_variant=variant,
        channels=(width, *later),
        layers=layers,
        decoder_time_upscale=tuple(out == 2 * c for out, c in grows),
        decoder_space_upscale=tuple(space),
    )
