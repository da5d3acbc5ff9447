"""Lowering: rewrites of exported graphs, targets and the export pipeline."""

from .errors import ExportError
from .legality import check
from .pipeline import Step, export, resolve_targets
from .targets import TARGETS

__all__ = ["TARGETS", "ExportError", "Step", "check", "export", "resolve_targets"]
