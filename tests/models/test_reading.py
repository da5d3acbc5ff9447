"""The files that checkpoints are made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from handheld.models import ModelError
from handheld.models.reading import load_pickled, open_safetensors, read_json, weight_files


def index(folder: Path, content: object) -> None:
    (folder / "w.safetensors.index.json").write_text(json.dumps(content))


def test_weights_are_one_file_or_those_of_an_index(tmp_path: Path) -> None:
    assert weight_files(tmp_path, "w.safetensors") == [tmp_path / "w.safetensors"]
    index(tmp_path, {"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}})
    assert weight_files(tmp_path, "w.safetensors") == [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": ["a"]}])
def test_an_index_without_a_table_is_refused(tmp_path: Path, content: object) -> None:
    index(tmp_path, content)
    with pytest.raises(ModelError, match="has no weight_map"):
        weight_files(tmp_path, "w.safetensors")


@pytest.mark.parametrize("name", ["../w.safetensors", "/w.safetensors", "sub/w.safetensors"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    index(tmp_path, {"weight_map": {"a": name}})
    with pytest.raises(ModelError, match="lie in its own folder"):
        weight_files(tmp_path, "w.safetensors")


def test_pickles_of_tensors_are_read_and_of_anything_else_are_not(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")
    assert torch.equal(load_pickled(tmp_path / "good.pt", mmap=True)["a"], torch.ones(2))
    torch.save({"a": Path("x")}, tmp_path / "bad.pt")
    with pytest.raises(ModelError, match="unpickling can run code"):
        load_pickled(tmp_path / "bad.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:100])
    for file in (tmp_path / "cut.pt", tmp_path / "none.pt"):
        with pytest.raises(ModelError, match="corrupt, truncated or unreadable"):
            load_pickled(file)


def test_safetensors_must_be_whole_and_json_an_object(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    with open_safetensors(tmp_path / "w.safetensors") as file:
        assert torch.equal(file.get_tensor("a"), torch.ones(2))
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-1])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        open_safetensors(tmp_path / "w.safetensors")
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ModelError, match="holds a JSON list"):
        read_json(tmp_path / "x.json")
