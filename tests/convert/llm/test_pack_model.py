"""Whole models through packing and the engine: the same tokens as transformers, selectors, interrupted packing."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handheld.convert import ExportError
from handheld.convert.llm import PackOptions, pack_model
from handheld.models import ModelError
from handheld.models.llm import Checkpoint, dense, open_checkpoint
from handheld.runtime.errors import BundleError, RuntimeMissing
from handheld.runtime.flash import Model, ModelOptions, SessionOptions, open_pack
from handheld.runtime.flash.engine import load_native
from handheld.runtime.flash.quantise import decode_rows, encode_rows

pytest.importorskip("transformers", reason="needs the extra llm")

Save = Callable[..., Path]
NAMES = ["llama", "qwen2", "opt"]
PROMPT = [7, 300, 41, 5, 99]
CALIBRATION = np.random.default_rng(0).integers(1, 384, (4, 32))


@pytest.fixture(autouse=True, scope="module")
def _engine() -> None:
    try:
        load_native()
    except RuntimeMissing as error:
        pytest.skip(str(error))


def packed(checkpoint: Checkpoint, path: Path, tokens: np.ndarray | None = None, **options: Any) -> Path:
    pack_model(checkpoint, path, PackOptions(**options), tokens)
    return path


def model_of(path: Path, mode: Any = "exact", **options: Any) -> Model:
    session = SessionOptions(1 << 26, reader_threads=2, **options)
    return open_pack(path).model(ModelOptions(session, mode, context_tokens=128))


def greedy(folder: Path, prompt: list[int], count: int) -> list[int]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, num_beams=1)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_exact_mode_writes_the_tokens_of_transformers(name: str, small_language_model: Save, tmp_path: Path) -> None:
    # No end token, so that all 64 come.
    folder = small_language_model(name)
    path = packed(open_checkpoint(folder), tmp_path / "model.flash", dtype="fp32")
    wanted = greedy_without_end(folder, 64)
    assert len(set(wanted)) > 8
    assert greedy_of(model_of(path), 64) == wanted


def greedy_without_end(folder: Path, count: int) -> list[int]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = model.generate(torch.tensor([PROMPT]), max_new_tokens=count, do_sample=False)
    return out[0, len(PROMPT) :].tolist()


def greedy_of(model: Model, count: int) -> list[int]:
    tokens, text = PROMPT, []
    for _ in range(count):
        text.append(int(model.decode(tokens).argmax()))
        tokens = text[-1:]
    return text
