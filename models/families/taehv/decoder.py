"""The TAEHV decoder: small, causal, of 2D convolutions that see each frame and the one before it."""

from __future__ import annotations

from torch import Tensor, nn

from ...decoder import Decoder
from ...latents import LatentSpec
from ...layers import Growth, Layer, declared
from ..base import Family
from ..clips import FrameConv, FrameShuffle
from ..loading import statistics_in
from .blocks import Activation, GrowTime, MemoryBlock, Nothing, SoftClamp, SuperMemoryBlock
from .config import CLASS_NAME, PRESETS, STAGES, TAEHVConfig
from .weights import config_of, own_weights

_TAIL = "tail"


class TAEHVDecoder(Decoder):
    """TAEHV's decoder for latents of HunyuanVideo (1 and 1.5), Wan (2.1 and 2.2) and LTX-2.

    Computes what the public `TAEHV.decode_video` does for the same weights (madebyollin/taehv at 1f14a56), in
    NCTHW. Latents are as a diffusion model gives them, unless `config.normalised_latents` says otherwise.
    Frames are RGB in [0, 1], clamped; in training mode they are not clamped, as a clamp has no gradient.

    The decoder is causal: no frame depends on a later latent frame. Of the frames that it makes of the first latent
    frame it gives the last one only, as the VAEs that it stands for do.
    """

    value_range = (0.0, 1.0)

    def __init__(self, config: TAEHVConfig) -> None:
        super().__init__()
        self.config = config
        layers = _super_layers(config) if config.arch_variant == "super" else _base_layers(config)
        # Children have the numbers that they have in the released `decoder`: their weights have its names.
        for i, layer in enumerate([*layers, FrameShuffle(config.patch_size)]):
            self.add_module(str(i), layer)
        memory = [str(i) for i, layer in enumerate(layers) if isinstance(layer, MemoryBlock | SuperMemoryBlock)]
        ends = memory[config.layers - 1 :: config.layers]
        self._taps = dict(zip(ends, ("mid_block", *(f"up_block_{i}" for i in range(STAGES - 1)))))

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes."""
        return self.config.spec

    @property
    def takes_normalised(self) -> bool:
        """Whether latents are as a diffusion model gives them."""
        return self.config.normalised_latents

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, C, T', H', W') to frames (N, 3, T, H, W) in [0, 1]; sizes are not checked."""
        return self.decode_with_features(latents)[0]

    def decode_with_features(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, with the maps after the memory blocks of each stage: `mid_block`, `up_block_0`, ..."""
        x, features = latents, {}
        for name, layer in self.named_children():
            x = layer(x)
            if name in self._taps:
                # Of a map's frames those count that frames come of which are not dropped.
                features[self._taps[name]] = x[:, :, x.shape[2] // latents.shape[2] - 1 :]
        return self.layers()[_TAIL](x), features

    def layers(self) -> dict[str, Layer]:
        """What the decoder computes, by the names of its modules; `tail` drops and limits frames."""
        layers = {name: declared(layer) for name, layer in self.named_children()}
        return {**layers, _TAIL: Growth((self.limited,), dropped=self.spec.temporal - 1)}

    def limited(self, x: Tensor) -> Tensor:
        """Frames in [0, 1], except in training."""
        return x if self.training else x.clamp(0, 1)


def _base_layers(config: TAEHVConfig) -> list[nn.Module]:
    widths = config.channels
    layers: list[nn.Module] = [SoftClamp(), FrameConv(config.latent_channels, widths[0], 3), Activation()]
    for stage in range(STAGES):
        layers += [MemoryBlock(widths[stage]) for _ in range(config.layers)]
        layers += [
            # The released doubling in space, which here comes after the pointwise convolution of GrowTime: with a
            # quarter of the work, that gives each pixel the same value.
            Nothing(),
            GrowTime(widths[stage], 1 + config.decoder_time_upscale[stage]),
            FrameConv(widths[stage], widths[stage + 1], 3, bias=False, doubles=config.decoder_space_upscale[stage]),
        ]
    return [*layers, Activation(), FrameConv(widths[-1], 3 * config.patch_size**2, 3)]


def _super_layers(config: TAEHVConfig) -> list[nn.Module]:
    widths = config.channels
    layers: list[nn.Module] = [FrameConv(config.latent_channels, widths[0], 1, bias=False)]
    for stage in range(STAGES):
        factor = 1 + config.decoder_space_upscale[stage]
        layers += [SuperMemoryBlock(widths[stage]) for _ in range(config.layers)]
        layers += [
            FrameConv(widths[stage], widths[stage + 1] * factor**2, 3),
            Activation(),
            FrameShuffle(factor),
            GrowTime(widths[stage + 1], 1 + config.decoder_time_upscale[stage]),
        ]
    return [*layers, FrameConv(widths[-1], 3 * config.patch_size**2, 3)]


FAMILY = Family(
    name="taehv",
    title="TAEHV (madebyollin/taehv): 2D convolutions of each frame and the one before it, causal",
    config=TAEHVConfig,
    decoder=TAEHVDecoder,
    presets=PRESETS,
    class_names=(CLASS_NAME,),
    own_weights=own_weights,
    config_of=config_of,
    statistics_of=statistics_in,
    student=True,
    causal=lambda config: config,
)
