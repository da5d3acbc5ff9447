"""Fetching from the hub, without a hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from handheld.models import ModelError
from handheld.models.hub import fetch, is_hub_id, names_on_hub


def test_a_hub_id_is_owner_and_name_of_nothing_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert is_hub_id("Lightricks/LTX-Video")
    assert not any(is_hub_id(name) for name in ("models/mine", "ltx", "a/b/c", "./a", "/tmp/a", "a/", "~/a"))


def test_patterns_go_to_the_hub_and_its_folder_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(hub_id: str, **options: object) -> str:
        asked.append((hub_id, options))
        return "/cache/x"

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert fetch("a/b", ("config.json",), "config.json") == Path("/cache/x")
    fetch("a/b", ["*"], "config.json", local_files_only=True)
    assert asked == [
        ("a/b", {"allow_patterns": ["config.json"], "local_files_only": False}),
        ("a/b", {"allow_patterns": ["*"], "local_files_only": True}),
    ]


def test_a_hub_that_gives_nothing_is_named_with_what_a_local_folder_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"^handheld-tests/absent .* could not be fetched .* local folder with x\.json"
    ):
        fetch("handheld-tests/absent", ["x.json"], "x.json")
    with pytest.raises(ModelError, match="is not in the cache"):
        fetch("handheld-tests/absent", ["x.json"], "x.json", local_files_only=True)
    with pytest.raises(ModelError, match="nor a hub id"):
        fetch("no hub id", ["x.json"], "x.json")
    assert names_on_hub("handheld-tests/absent") is None
