"""handheld: distil, lower, verify and measure generative models on phones.

The public names below are imported when first asked for, so that `import handheld` is quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import Any

__version__ = _version("handheld")

# Public name -> the module that has it.
_PUBLIC = {
    "PRESETS": "handheld.models",
    "TurboVAEDConfig": "handheld.models",
    "TurboVAEDecoder": "handheld.models",
    "Decoder": "handheld.models",
    "FAMILIES": "handheld.models",
    "Family": "handheld.models",
    "LatentStatistics": "handheld.models",
    "from_preset": "handheld.models",
    "load_decoder": "handheld.models",
    "LatentSpec": "handheld.models",
    "ModelError": "handheld.models",
    "TEACHERS": "handheld.models.teachers",
    "load_teacher": "handheld.models.teachers",
    "read_run": "handheld.distill",
    "DistillError": "handheld.distill",
    "TARGETS": "handheld.convert",
    "check": "handheld.convert",
    "Source": "handheld.convert.source",
    "open_source": "handheld.sources",
    "export": "handheld.exporting",
    "estimate": "handheld.estimating",
    "encode": "handheld.encoding",
    "decode": "handheld.decoding",
    "resolve_targets": "handheld.convert",
    "ExportError": "handheld.convert",
    "read_bundle": "handheld.runtime.bundle",
    "open_session": "handheld.runtime.session",
    "verify": "handheld.verifying",
    "profile": "handheld.profiling",
    "RuntimeFailure": "handheld.runtime.errors",
}

__all__ = ["__version__", "distill", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "distill":  # the package, which is called like the function in it
        return import_module("handheld.distill")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'handheld' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
