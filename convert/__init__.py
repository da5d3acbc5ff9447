"""Lowering: rewrites of exported graphs, targets and the export pipeline."""
