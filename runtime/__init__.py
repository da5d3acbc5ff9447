"""Bundles, sessions over the runtimes, verification and measurement. Imports nothing else of ours."""
