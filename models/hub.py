"""Fetching files of checkpoints from the Hugging Face hub: the only place that asks it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .errors import ModelError

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_hub_id(source: str | Path) -> bool:
    """Whether a source reads as `owner/name` and nothing of that name is here."""
    return _HUB_ID.fullmatch(str(source)) is not None and not Path(source).expanduser().exists()


def fetch(hub_id: str, patterns: Sequence[str], needed: str, *, local_files_only: bool = False) -> Path:
    """Fetch the files of a hub repository that match; those in the cache are taken from there.

    Args:
        hub_id: `owner/name`.
        patterns: as in a shell, relative to the repository: `vae/config.json`, `*.safetensors`.
        needed: what a local folder must hold to do as well, for the error: `config.json and model.safetensors`.
        local_files_only: take what is in the cache, without asking the hub.

    Returns:
        The local folder of the repository.

    Raises ModelError for a name that is no hub id, and where the hub does not give the files.
    """
    if _HUB_ID.fullmatch(hub_id) is None:
        raise ModelError(f"{hub_id} is neither a file or folder here nor a hub id (owner/name).")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), local_files_only=local_files_only))
    except Exception as error:  # offline, no such name, no access, a full disk: many types, one remedy
        where = "is not in the cache" if local_files_only else "could not be fetched"
        raise ModelError(
            f"{hub_id} is no file or folder here, and as a hub id it {where} ({type(error).__name__}). Check the "
            f"name and the connection, or give a local folder with {needed}."
        ) from error


def names_on_hub(hub_id: str) -> list[str] | None:
    """The names of all files of a hub repository. None where the hub cannot be asked."""
    from huggingface_hub import list_repo_files

    try:
        return list_repo_files(hub_id)
    except Exception:  # offline, no such name: what then fails is fetching, which says so
        return None
