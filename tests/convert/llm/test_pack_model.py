"""Whole models through packing and the engine: the tokens of transformers, blocks kept, interrupted packing."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from handheld.convert import ExportError
from handheld.convert.llm import PackOptions, pack_model
from handheld.models import ModelError
from handheld.models.llm import Blocks, Checkpoint, dense, open_checkpoint
from handheld.runtime.errors import BundleError, RuntimeMissing
from handheld.runtime.flash import Model, ModelOptions, SessionOptions, open_pack
from handheld.runtime.flash.engine import load_native
from handheld.runtime.flash.quantise import decode_rows

pytest.importorskip("transformers", reason="needs the extra llm")

Save = Callable[..., Path]
PROMPT = [7, 300, 41, 5, 99]


@pytest.fixture(autouse=True, scope="module")
def _engine() -> None:
    try:
        load_native()
    except RuntimeMissing as error:
        pytest.skip(str(error))


def model_of(path: Path, mode: Any = "exact", **options: Any) -> Model:
    session = SessionOptions(**{"budget_bytes": 1 << 26, "reader_threads": 2, **options})
    return open_pack(path).model(ModelOptions(session, mode, context_tokens=128))


def written_by(model: Model, prompt: list[int], count: int) -> list[int]:
    """Greedily, whether or not a token ends the text."""
    tokens, text = prompt, []
    for _ in range(count):
        text.append(int(model.decode(tokens).argmax()))
        tokens = text[-1:]
    return text


def written_by_transformers(model: Any, prompt: list[int], count: int) -> list[int]:
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["llama", "qwen2", "opt"])
def test_exact_mode_writes_the_tokens_of_transformers(
    name: str, small_language_model: Save, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = small_language_model(name)
    pack_model(open_checkpoint(folder), tmp_path / "model.flash", PackOptions(dtype="fp32"))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted = written_by_transformers(reference, PROMPT, 64)
    assert len(set(wanted)) > 4
    assert written_by(model_of(tmp_path / "model.flash"), PROMPT, 64) == wanted
    # The same from a table that holds a part of the neurons only.
    floor = open_pack(tmp_path / "model.flash").model_floor_bytes(
        ModelOptions(SessionOptions(0, reader_threads=2), context_tokens=128)
    )
    assert written_by(model_of(tmp_path / "model.flash", budget_bytes=floor + 20_000), PROMPT, 64) == wanted


@pytest.mark.slow
def test_embedded_model_writes_the_tokens_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with it")
    from transformers import AutoModelForCausalLM

    try:
        checkpoint = open_checkpoint("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    pack_model(checkpoint, tmp_path / "model.flash", PackOptions(dtype="fp32"))
    file = Path(checkpoint.source)
    reference = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    prompt = [504, 7003, 282, 4649, 314]
    wanted = written_by_transformers(reference, prompt, 64)
    model = model_of(tmp_path / "model.flash", budget_bytes=1 << 30)
    assert written_by(model, prompt, 64) == wanted


class InBlocks(Checkpoint):
    """A checkpoint whose matrices are in blocks of one type, as a GGUF file's."""

    def __init__(self, inner: Checkpoint, kind: str) -> None:
        self.config, self.source, self._inner, self._kind = inner.config, inner.source, inner, kind

    def tokenizer(self) -> None:
        return None

    def _tensor(self, name: str, layer: int | None) -> np.ndarray | Blocks | None:
        tensor = self._inner._tensor(name, layer)
        if tensor is None or tensor.ndim != 2:
            return tensor
        rng = np.random.default_rng(len(name))
        scales = rng.uniform(-0.01, 0.01, (len(tensor), tensor.shape[1] // 32)).astype(np.float16)
        low, high = {"int8": (-127, 128), "int4": (-8, 8), "int4m": (0, 16)}[self._kind]
        codes = rng.integers(low, high, tensor.shape).astype(np.uint8 if low == 0 else np.int8)
        minimums = scales * np.float16(-7) if low == 0 else None
        return Blocks(8 if self._kind == "int8" else 4, codes, scales, minimums)


@pytest.mark.parametrize("kind", ["int8", "int4", "int4m"])
def test_blocks_that_fit_the_dtype_are_stored_without_loss(
    kind: str, small_language_model: Save, tmp_path: Path
) -> None:
    checkpoint = InBlocks(open_checkpoint(small_language_model("llama")), kind)
    pack_model(checkpoint, tmp_path / "model.flash", PackOptions(dtype=kind, embed_dtype=kind))
    with safe_open(tmp_path / "model.flash" / "resident.safetensors", "np") as file:
        for stored, original in (
            (file.get_tensor("model.1.q"), checkpoint.layer(1)["q"]),
            (file.get_tensor("model.embed"), checkpoint.outer("embed")),
        ):
            columns = original.shape[1]
            np.testing.assert_array_equal(decode_rows(stored, kind, columns, 32), dense(original))
    gate, up = first_bundle(tmp_path / "model.flash", kind)
    np.testing.assert_array_equal(gate, dense(checkpoint.layer(0)["gate"])[0])
    np.testing.assert_array_equal(up, dense(checkpoint.layer(0)["up"])[0])


def first_bundle(pack: Path, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Gate and up row of the first neuron."""
    from handheld.runtime.flash.layout import header_bytes
    from handheld.runtime.flash.quantise import row_bytes

    size = row_bytes(dtype, 64, 32)
    with (pack / "neurons.bin").open("rb") as file:
        file.seek(header_bytes(3))
        stored = np.frombuffer(file.read(2 * size), np.uint8).reshape(2, size)
    gate, up = decode_rows(stored, dtype, 64, 32)
    return gate, up


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_rounded_weights_give_close_logits(dtype: str, small_language_model: Save, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = small_language_model("qwen2")
    pack_model(open_checkpoint(folder), tmp_path / "model.flash", PackOptions(dtype=dtype))
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        wanted = reference(torch.tensor([PROMPT])).logits[0, -1].numpy()
    found = model_of(tmp_path / "model.flash", "dense").decode(PROMPT)
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    # Roundings to 11 and to 8 bits, through two layers of random weights.
    assert 0 < error < {"fp16": 0.01, "int8": 0.1}[dtype]


def test_tokenizer_travels_with_the_pack(small_language_model: Save, tmp_path: Path) -> None:
    import json

    pack_model(open_checkpoint(small_language_model("llama")), tmp_path / "model.flash", PackOptions())
    files = json.loads((tmp_path / "model.flash" / "manifest.json").read_text())["files"]
    assert files["tokenizer.json"]["size_bytes"] == (tmp_path / "model.flash" / "tokenizer.json").stat().st_size


def test_a_full_disk_leaves_nothing(small_language_model: Save, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(small_language_model("llama"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(BundleError, match="disk is full"):
            pack_model(checkpoint, tmp_path / "model.flash", PackOptions())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_breaks_half_way_leaves_nothing(small_language_model: Save, tmp_path: Path) -> None:
    class Broken(InBlocks):
        def layer(self, index: int) -> dict[str, np.ndarray | Blocks]:
            if index == 2:
                raise ModelError("layer 2 is gone")
            return super().layer(index)

    broken = Broken(open_checkpoint(small_language_model("llama")), "int8")
    with pytest.raises(ModelError, match="layer 2 is gone"):
        pack_model(broken, tmp_path / "model.flash", PackOptions())
    assert not list(tmp_path.iterdir())


def test_options_out_of_range_are_listed_together(small_language_model: Save, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"dtype is int3, .*; selector is oracle, .*; active is 2, "):
        PackOptions(dtype="int3", selector="oracle", active=2)
    with pytest.raises(ExportError, match="need a calibration text"):
        pack_model(open_checkpoint(small_language_model("llama")), tmp_path / "p", PackOptions(selector="ternary"))
