"""Work of the models whose speed on an iPhone was published: writes convert/estimate/published.json.

    python benchmarks/published_work.py

Students are presets; teachers are diffusers' classes with their released configurations, on the meta device and
without weights. Video DC-AE is in no installed package: of its decoder only the last stage is built here, at full
resolution, which is where its memory peaks; its time was not published. Clip lengths were not published either: 17
frames are assumed (16 where the latent space has no frame of its own), the length that the models were trained and
judged at, and 704 rows for 720, the multiple of 32 below it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from handheld.convert import TARGETS
from handheld.convert.estimate import Work, work_of
from handheld.convert.estimate.work import work_of_graph
from handheld.convert.graph.capture import capture
from handheld.models import LatentSpec, TurboVAEDecoder
from handheld.models.teachers import TEACHERS
from handheld.models.teachers._diffusers import vae_class

OUT = Path(__file__).resolve().parents[1] / "convert" / "estimate" / "published.json"

# Model, rows, columns, frames a second on the iPhone 16 Pro; None is out of memory.
STUDENTS = (
    ("ltx", 512, 512, 161.8),
    ("dc", 512, 512, 112.7),
    ("hunyuan", 512, 512, 10.6),
    ("cogvideox", 512, 512, 10.6),
    ("ltx", 704, 1280, 38.1),
    ("dc", 704, 1280, 25.3),
)
TEACHER_ROWS = (("ltx", 17.7), ("hunyuan", None), ("cogvideox", None))

# Half of the published parameters of Video DC-AE's decoder are in stages that are not built here.
DC_AE_PARAMETERS = 239_000_000


class LastStage(nn.Module):
    """Video DC-AE's decoder from its last upsampling on: 256 channels at half size to RGB."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv3d(256, 128, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv3d(128, 128, 3, padding=1), nn.SiLU(), nn.Conv3d(128, 128, 3, padding=1))
            for _ in range(3)
        )
        self.out = nn.Conv3d(128, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        n, c, t, h, w = features.shape
        repeated = features[:, :, :, :, None, :, None].expand(n, c, t, h, 2, w, 2).reshape(n, c, t, 2 * h, 2 * w)
        x = self.up(repeated) + repeated[:, ::2]
        for block in self.blocks:
            x = x + block(x)
        return self.out(functional.relu(x))


def latents(spec: LatentSpec, rows: int, columns: int) -> Tensor:
    frames = 17 if spec.first_frame_alone else 16
    return torch.empty(spec.latent_shape(frames=frames, height=rows, width=columns), device="meta")


def student(preset: str, rows: int, columns: int) -> Work:
    with torch.device("meta"):
        model = TurboVAEDecoder.from_preset(preset).eval()
    return work_of(model, latents(model.spec, rows, columns), TARGETS["ios"])


def teacher(name: str) -> Work:
    """As released, but for our target's rewrites: what an estimate of it would say."""
    info = TEACHERS[name]
    with torch.device("meta"):
        model = info.decoder(vae_class(info.diffusers_class)()).eval()
    return work_of(model, latents(info.spec, 512, 512), TARGETS["ios"])


def video_dc_ae() -> Work:
    with torch.device("meta"):
        graph = capture(LastStage().eval(), (torch.empty(1, 256, 16, 256, 256, device="meta"),))
    work = work_of_graph(graph, torch.float16, channel_block=32)
    return replace(work, weight_bytes=DC_AE_PARAMETERS * torch.float16.itemsize)


def row(model: str, rows: int, columns: int, rate: float | None, work: Work) -> dict:
    return {"model": f"{model}, {columns}x{rows}", "frames_per_second": rate, "work": asdict(work)}


def main() -> None:
    rows = [row(f"student {name}", *size, rate, student(name, *size)) for name, *size, rate in STUDENTS]
    rows += [row(f"teacher {name}", 512, 512, rate, teacher(name)) for name, rate in TEACHER_ROWS]
    rows.append(row("teacher Video DC-AE", 512, 512, None, video_dc_ae()))
    source = "Turbo-VAED, arXiv 2508.09136: frames per second on an iPhone 16 Pro"
    lines = ",\n".join(f"  {json.dumps(one)}" for one in rows)
    OUT.write_text(f'{{\n "source": {json.dumps(source)},\n "rows": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
