"""Teachers: video VAEs whose decoders are distilled. One file each; a new one is a file and a line here."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import ModelError
from .base import ClipDecoder, Teacher, TeacherInfo
from .cogvideox import TEACHER as cogvideox
from .embedded import TEACHER as embedded
from .hunyuan import TEACHER as hunyuan
from .loading import load
from .ltx import TEACHER as ltx
from .wan import TEACHER as wan

__all__ = ["TEACHERS", "ClipDecoder", "Teacher", "TeacherInfo", "load_teacher"]

TEACHERS: dict[str, TeacherInfo] = {info.name: info for info in (embedded, ltx, hunyuan, cogvideox, wan)}


def load_teacher(name: str, source: str | Path | None = None, *, dtype: torch.dtype = torch.float32) -> Teacher:
    """A frozen teacher, ready to encode and decode on the CPU (move it with `.to(device)`).

    Args:
        name: a key of `TEACHERS`.
        source: a folder as diffusers' `save_pretrained` writes it, a pipeline folder with that in `vae`, or
            a hub id. By default the released weights, from the hub; of `embedded`, the packaged ones.
        dtype: what it computes in; weights stored otherwise are converted.

    Raises ModelError for an unknown name, for a source that cannot be had, is of another class, is corrupt
    or incomplete, and for a configuration that has no latent space.
    """
    if name not in TEACHERS:
        raise ModelError(f"No teacher {name!r}. Teachers: {', '.join(TEACHERS)}.")
    if not dtype.is_floating_point:
        raise ModelError(f"A teacher cannot compute in {dtype}; give a floating-point dtype.")
    info = TEACHERS[name]
    # The class that `embedded` shares with `ltx` is named after `ltx`, which comes later in the table.
    names = {other.diffusers_class: other.name for other in TEACHERS.values()}
    return load(info, info.default_source if source is None else source, dtype, names)
