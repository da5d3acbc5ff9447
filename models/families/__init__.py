"""Decoder architectures, one file or folder each."""
