"""Tokenizers of checkpoints, in the form that the package `tokenizers` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ModelError
from .checkpoint import TokenizerFiles


def from_transformers(folder: Path, source: str, **options: Any) -> TokenizerFiles:
    """The tokenizer that transformers finds in a folder. Raises ModelError where it finds none that it can load."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
        text = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # missing files, unknown classes, packages that are not installed: many types
        raise ModelError(
            f"The tokenizer of {source} cannot be loaded ({type(error).__name__}: {error}). Add its tokenizer.json."
        ) from error
    template = tokenizer.chat_template
    return TokenizerFiles(text, template if isinstance(template, str) else None)
