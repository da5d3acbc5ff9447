"""Flash-VAED for LTX-Video (arXiv 2602.19161): LTX's decoder with fewer channels and another operator per stage.

Parameter names are the released ones. Every tensor is NCTHW. Source: Aoko955/Flash-VAED at 54a27aa, models/ltx.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError
from ..fields import length_faults, read_fields
from ..latents import LatentSpec
from ..layers import Chain, Function, Growth, Layer, Residual, Taps, Window, declared
from .base import Family, weights_except
from .blocks import Block, BlockDecoder
from .clips import FrameConv, FrameShuffle, PatchConv3d
from .loading import statistics_in
from .turbo_vaed.blocks import ChannelLayerNorm, ChannelRMSNorm, Conv3d, shuffle_frames

CLASS_NAME = "FlashVAEDLTX"

# What a stage's ResNet blocks convolve with.
OPERATORS = ("dense", "depthwise", "frame")


@dataclass(frozen=True)
class FlashVAEDLTXConfig:
    """Architecture of one decoder. Sequences are in encoder order, as LTX's own: the last entry decodes first.

    Attributes:
        latent_channels: channels of the latents.
        decoder_block_out_channels: width of each up block.
        decoder_layers_per_block: ResNet blocks of each up block and, last, of the mid block.
        decoder_operators: of each up block and, last, of the mid block: `dense` for 3D convolutions, `depthwise`
            for depthwise-separable 3D convolutions, `frame` for 2D convolutions of each frame.
        decoder_force_shortcut: whether each up block's ResNet blocks have a convolution in the shortcut even where
            the width stays.
        decoder_spatio_temporal_scaling: whether each up block doubles frames, height and width.
        out_channels: channels of the frames.
        patch_size: pixels along height and width that the last convolution makes at each place.
        resnet_norm_eps: epsilon of the LayerNorm before a convolutional shortcut.
        scaling_factor: how a diffusion model scales the latents; `decode` takes them unscaled.
        decoder_causal: frames depend on no later latent frame. As released the depthwise convolutions are causal
            in any case and the dense ones are not.
    """

    latent_channels: int
    decoder_block_out_channels: tuple[int, ...]
    decoder_layers_per_block: tuple[int, ...]
    decoder_operators: tuple[str, ...]
    decoder_force_shortcut: tuple[bool, ...]
    decoder_spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False)
    out_channels: int = 3
    patch_size: int = 4
    resnet_norm_eps: float = 1e-6
    scaling_factor: float = 1.0
    decoder_causal: bool = False

    def __post_init__(self) -> None:
        blocks = len(self.decoder_block_out_channels)
        lengths = {
            "decoder_layers_per_block": blocks + 1,
            "decoder_operators": blocks + 1,
            "decoder_force_shortcut": blocks,
            "decoder_spatio_temporal_scaling": blocks,
        }
        faults = length_faults(self, lengths, f"{blocks} blocks")
        if not blocks:
            faults.append("decoder_block_out_channels is empty")
        for operator in dict.fromkeys(self.decoder_operators):
            if operator not in OPERATORS:
                faults.append(f"decoder_operators has {operator!r}; there are {', '.join(OPERATORS)}")
        if self.patch_size < 1:
            faults.append(f"patch_size is {self.patch_size}; it must be at least 1")
        if faults:
            raise ModelError("Impossible Flash-VAED configuration for LTX: " + "; ".join(faults) + ".")

    @property
    def spec(self) -> LatentSpec:
        """The latent space that this decoder takes."""
        doubled = 2 ** sum(self.decoder_spatio_temporal_scaling)
        return LatentSpec(self.latent_channels, self.patch_size * doubled, doubled)

    def to_json(self) -> str:
        """The configuration as JSON."""
        return json.dumps({"_class_name": CLASS_NAME, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "the configuration") -> FlashVAEDLTXConfig:
        """Read a saved configuration. Unknown keys and values of another type raise ModelError."""
        return cls(**read_fields(cls, data, where, "Flash-VAED for LTX"))


PRESETS: dict[str, FlashVAEDLTXConfig] = {
    "flash-ltx": FlashVAEDLTXConfig(
        latent_channels=128,
        decoder_block_out_channels=(32, 64, 512, 512),
        decoder_layers_per_block=(4, 3, 3, 3, 4),
        decoder_operators=("frame", "dense", "depthwise", "depthwise", "depthwise"),
        decoder_force_shortcut=(True, True, False, False),
    ),
}


class DepthwiseConv3d(nn.Module):
    """Depthwise 3D convolution, causal in time (copies of the first frame come before it), then a pointwise one."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        space = (0, kernel // 2, kernel // 2)
        self.depthwise = nn.Conv3d(in_channels, in_channels, kernel, padding=space, groups=in_channels)
        self.pointwise = nn.Conv3d(in_channels, out_channels, 1)

    def layer(self, *prepare: Function) -> Window:
        """The two convolutions, with functions of each place and time before their border frames."""
        taps = Taps.centred(self.kernel, causal=True)
        return Window((self.depthwise, self.pointwise), taps, rows=self.kernel // 2, prepare=prepare)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)


def _conv(operator: str, in_channels: int, out_channels: int, kernel: int, causal: bool) -> nn.Module:
    if operator == "depthwise":
        return DepthwiseConv3d(in_channels, out_channels, kernel)
    if operator == "frame":
        return FrameConv(in_channels, out_channels, kernel)
    return Conv3d(in_channels, out_channels, kernel, causal)


class ResnetBlock(nn.Module):
    """RMSNorm, SiLU, convolution, twice, plus a shortcut."""

    def __init__(
        self, operator: str, in_channels: int, out_channels: int, *, eps: float, causal: bool, shortcut: bool
    ) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm()
        self.conv1 = _conv(operator, in_channels, out_channels, 3, causal)
        self.conv2 = _conv(operator, out_channels, out_channels, 3, causal)
        if in_channels != out_channels or shortcut:
            self.norm3 = ChannelLayerNorm(in_channels, eps=eps)
            self.conv_shortcut = _conv(operator, in_channels, out_channels, 1, causal)

    def layer(self) -> Residual:
        """The block: two convolutions, and a shortcut of one tap or none."""
        branch = tuple(declared(conv, self.norm, F.silu) for conv in (self.conv1, self.conv2))
        shortcut = (declared(self.conv_shortcut, self.norm3),) if hasattr(self, "conv_shortcut") else ()
        return Residual(branch, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)


class ShuffleUpsampler(nn.Module):
    """Convolution to 8C channels, each eighth of which becomes a place in 2 frames, 2 rows and 2 columns.

    The first of the doubled frames is dropped.
    """

    def __init__(self, channels: int, causal: bool) -> None:
        super().__init__()
        self.conv = Conv3d(channels, 8 * channels, 3, causal)

    def layer(self) -> Chain:
        """The convolution, then the shuffle."""
        return Chain((declared(self.conv), Growth((self.shuffle,), 2, scale=2, dropped=1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer()(x)

    def shuffle(self, x: Tensor) -> Tensor:
        """(N, 8C, T, H, W) to (N, C, 2T, 2H, 2W), from channels ((c*2 + frame)*2 + row)*2 + column."""
        x = shuffle_frames(x)
        n, c, t, h, w = x.shape
        return x.reshape(n, c // 2, 2, t, h, w).transpose(2, 3).reshape(n, c // 2, 2 * t, h, w)


class MidBlock(Block):
    """ResNet blocks at the latents' resolution."""

    def __init__(self, operator: str, channels: int, layers: int, **block: Any) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(operator, channels, channels, shortcut=False, **block) for _ in range(layers)
        )


class UpBlock(Block):
    """Optional change of width, optional upsampling, ResNet blocks."""

    def __init__(
        self,
        operator: str,
        in_channels: int,
        out_channels: int,
        layers: int,
        *,
        scales: bool,
        shortcut: bool,
        **block: Any,
    ) -> None:
        super().__init__()
        if in_channels != out_channels or shortcut:
            # What changes the width is never frame by frame.
            first = "depthwise" if operator == "depthwise" else "dense"
            self.conv_in = ResnetBlock(first, in_channels, out_channels, shortcut=shortcut, **block)
        if scales:
            self.upsamplers = nn.ModuleList([ShuffleUpsampler(out_channels, block["causal"])])
        self.resnets = nn.ModuleList(
            ResnetBlock(operator, out_channels, out_channels, shortcut=shortcut, **block) for _ in range(layers)
        )


class FlashVAEDLTXDecoder(BlockDecoder):
    """Flash-VAED's decoder for LTX-Video.

    Computes the function of the public `LTXVideoDecoder3d` for the same weights (Aoko955/Flash-VAED at 54a27aa,
    models/ltx/ltx_prune_1_4.py).

    Latents are (N, C, T', H', W'), as the encoder emits them, not normalised for a diffusion model.
    Frames are (N, 3, T, H, W), RGB, nominally in [-1, 1], not clamped. `spec` relates the two sizes.
    """

    def __init__(self, config: FlashVAEDLTXConfig) -> None:
        super().__init__()
        self.config = config
        block: dict[str, Any] = dict(eps=config.resnet_norm_eps, causal=config.decoder_causal)
        widths = config.decoder_block_out_channels[::-1]
        layers = config.decoder_layers_per_block[::-1]
        operators = config.decoder_operators[::-1]
        scales = config.decoder_spatio_temporal_scaling[::-1]
        shortcuts = config.decoder_force_shortcut[::-1]
        self.conv_in = Conv3d(config.latent_channels, widths[0], 3, config.decoder_causal)
        self.mid_block = MidBlock(operators[0], widths[0], layers[0], **block)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                operators[i + 1],
                widths[max(i - 1, 0)],
                width,
                layers[i + 1],
                scales=scales[i],
                shortcut=shortcuts[i],
                **block,
            )
            for i, width in enumerate(widths)
        )
        self.norm = ChannelRMSNorm()
        self.conv_out = PatchConv3d(widths[-1], config.out_channels, config.patch_size, config.decoder_causal)
        self.shuffle = FrameShuffle(config.patch_size)

    def tail(self) -> list[Layer]:
        """The last convolution, into patches, and their pixels' places."""
        return [declared(self.conv_out, self.norm, F.silu), declared(self.shuffle)]


FAMILY = Family(
    name="flash-vaed-ltx",
    title="Flash-VAED for LTX-Video (arXiv 2602.19161): pruned, one operator per stage",
    config=FlashVAEDLTXConfig,
    decoder=FlashVAEDLTXDecoder,
    presets=PRESETS,
    class_names=(CLASS_NAME,),
    own_weights=weights_except("encoder.", "latents_mean", "latents_std", "mean_of_means", "std_of_means"),
    statistics_of=statistics_in,
    student=True,
    causal=lambda config: replace(config, decoder_causal=True),
)
