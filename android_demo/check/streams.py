"""ONNX bundles of a small random decoder: streamed, of two shapes, of 8-bit RGBA; and what it makes of other clips.

    python android_demo/check/streams.py FOLDER     writes FOLDER/{whole,strips,half,shapes,pixels}/ and
                                                    FOLDER/clips.safetensors

The JVM tests decode them with ONNX Runtime's Java library.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from handheld.convert import export, resolve_targets
from handheld.convert.streaming import Cut, PassCut
from handheld.models import PRESETS, TurboVAEDecoder

# By bundle: the cuts, and the precision.
BUNDLES = {
    "whole": ((PassCut((Cut(3, 2), Cut(3, 4))),), None),
    "strips": ((PassCut((Cut(3, 2),)), PassCut((Cut(3, 5),), strips=2)), None),
    "half": ((PassCut((Cut(6, 2),)),), "fp16"),
}
LENGTHS = (2, 7)


def latents(frames: int) -> torch.Tensor:
    return torch.randn(1, 4, frames, 8, 2, generator=torch.Generator().manual_seed(frames))


def main(folder: Path) -> None:
    config = replace(
        PRESETS["tiny"], latent_channels=4, decoder_block_out_channels=(32, 32), decoder_layers_per_block=(1, 1, 1)
    )
    torch.manual_seed(0)
    model = TurboVAEDecoder(config).eval()
    for name, (cuts, precision) in BUNDLES.items():
        export(
            model,
            latents(4),
            folder / name,
            targets=resolve_targets(("onnx",)),
            name=name,
            provenance={},
            stream=cuts,
            more=[latents(1)],
            precision=precision,
        )
    for name, more, pixels in (("shapes", [latents(1)], "float"), ("pixels", [], "rgba8")):
        export(
            model,
            latents(2),
            folder / name,
            targets=resolve_targets(("onnx",)),
            name=name,
            provenance={},
            more=more,
            pixels=pixels,
        )
    clips = {}
    for length in LENGTHS:
        clips[f"latents.{length}"] = latents(length)
        clips[f"frames.{length}"] = model.decode(latents(length)).contiguous()
    save_file(clips, folder / "clips.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
