"""Lowering: rewrites of exported graphs, targets and the export pipeline."""

from .errors import ExportError
from .graph.legality import check
from .pipeline import Step, export, resolve_targets
from .precision.auto import export_smallest
from .targets import TARGETS

__all__ = ["TARGETS", "ExportError", "Step", "check", "export", "export_smallest", "resolve_targets"]
