"""Language models from folders and GGUF files: one set of names, the same arithmetic as transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handheld.models import ModelError
from handheld.models.llm import Blocks, Checkpoint, Decoder, dense, open_checkpoint

pytest.importorskip("transformers", reason="needs the extra llm")

Save = Callable[..., Path]
TOKENS = torch.arange(5, 75).remainder(61).view(2, 35)


def logits_of(checkpoint: Checkpoint, tokens: torch.Tensor) -> torch.Tensor:
    decoder = Decoder(checkpoint)
    hidden = decoder.embed(tokens)
    for index in range(checkpoint.config.layers):
        layer = checkpoint.layer(index)
        hidden = decoder.attend(layer, hidden)
        x = decoder.feed_forward_input(layer, hidden)
        hidden = decoder.feed_forward(layer, hidden, decoder.activations(layer, x))
    return decoder.logits(hidden)


def transformers_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits


@pytest.mark.parametrize("name", ["llama", "qwen2", "opt"])
def test_decoder_gives_the_logits_of_transformers(name: str, small_language_model: Save) -> None:
    folder = small_language_model(name)
    wanted = transformers_logits(folder, TOKENS)
    assert wanted.std() > 0.3
    torch.testing.assert_close(logits_of(open_checkpoint(folder), TOKENS), wanted, rtol=1e-4, atol=1e-4)


def test_llama_with_relu_and_biases_gives_the_logits_of_transformers(small_language_model: Save) -> None:
    folder = small_language_model("llama", hidden_act="relu", attention_bias=True, tie_word_embeddings=False)
    wanted = transformers_logits(folder, TOKENS)
    torch.testing.assert_close(logits_of(open_checkpoint(folder), TOKENS), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("llama", {"mlp_bias": True}, "not supported: mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "its activation is gelu, allowed are relu, silu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "type dynamic"),
        ("qwen2", {"use_sliding_window": True}, "not supported: use_sliding_window"),
        ("opt", {"do_layer_norm_before": False}, "not supported: do_layer_norm_before false"),
        ("opt", {"word_embed_proj_dim": 32}, "not supported: word_embed_proj_dim other than hidden_size"),
    ],
)
def test_variant_that_is_not_supported_is_refused_by_name(
    name: str, config: dict[str, Any], message: str, small_language_model: Save, tmp_path: Path
) -> None:
    shutil.copytree(small_language_model(name), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(ModelError, match=message):
        open_checkpoint(tmp_path / "model")


def test_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}')
    with pytest.raises(ModelError, match=r"architecture MambaForCausalLM.*Supported: LlamaForCausalLM, Qwen2"):
        open_checkpoint(tmp_path)


def test_every_missing_and_misshapen_tensor_is_named(small_language_model: Save, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(small_language_model("llama"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    del state["model.layers.1.self_attn.k_proj.weight"]
    state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 64)
    save_file(state, file)
    checkpoint = open_checkpoint(tmp_path / "model")
    checkpoint.layer(0)
    with pytest.raises(
        ModelError, match=r"layer 1: k is missing; up is \(3, 64\), its configuration says \(160, 64"
    ):
        checkpoint.layer(1)


def test_pickled_weights_load_and_other_pickles_are_refused(small_language_model: Save, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    shutil.copytree(small_language_model("opt"), folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    # As released OPT checkpoints are: without the prefix.
    bare = {name.removeprefix("model."): value.half() for name, value in state.items()}
    torch.save(bare, folder / "pytorch_model.bin")
    up = open_checkpoint(folder).layer(1)["up"]
    np.testing.assert_array_equal(up, state["model.decoder.layers.1.fc1.weight"].half().float().numpy())
    torch.save({"module": torch.nn.Linear(2, 2)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="unpickling can run code"):
        open_checkpoint(folder)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        open_checkpoint(tmp_path / "nothing")
    (tmp_path / "model.txt").write_text("")
    with pytest.raises(ModelError, match=r"is no \.gguf file"):
        open_checkpoint(tmp_path / "model.txt")
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        open_checkpoint(tmp_path / "model.gguf")


def test_tokenizer_comes_with_the_checkpoint(small_language_model: Save) -> None:
    from tokenizers import Tokenizer

    folder = small_language_model("llama")
    files = open_checkpoint(folder).tokenizer()
    assert files is not None
    tokenizer = Tokenizer.from_str(files.tokenizer)
    text = "takes video models"
    assert tokenizer.encode(text).ids == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert files.chat_template is None


@pytest.fixture(scope="module")
def gguf_file(small_language_model: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small llama, in blocks of every kind that is kept; q and k rows are permuted as converters do."""
    gguf = pytest.importorskip("gguf", reason="needs the extra llm")
    from safetensors.torch import load_file

    folder = small_language_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    state = {name: value.numpy() for name, value in load_file(folder / "model.safetensors").items()}
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_block_count(3)
    writer.add_feed_forward_length(160)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_rope_dimension_count(32)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_eos_token_id(0)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    kinds = {"attn_q": "Q4_0", "attn_k": "Q8_0", "ffn_gate": "Q4_1", "ffn_down": "Q5_0", "attn_v": "F16"}

    def put(name: str, value: np.ndarray, kind: str) -> None:
        kind_of = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(value, kind_of), raw_dtype=kind_of)

    put("token_embd", state["model.embed_tokens.weight"], "Q8_0")
    put("output_norm", state["model.norm.weight"], "F32")
    for layer in range(3):
        for theirs, ours in names.items():
            value = state[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                heads = 4 if ours == "attn_q" else 2
                value = value.reshape(heads, 2, 16, 64).swapaxes(1, 2).reshape(value.shape)
            put(f"blk.{layer}.{ours}", value, kinds.get(ours, "F32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_blocks_are_kept_and_rows_are_put_back(gguf_file: Path, small_language_model: Save) -> None:
    import gguf

    folder = small_language_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    original, read = open_checkpoint(folder), open_checkpoint(gguf_file)
    # GGUF holds it in fp32.
    assert read.config == replace(original.config, norm_eps=float(np.float32(1e-6)))
    np.testing.assert_allclose(read.config.rope_inv_freq, original.config.rope_inv_freq, rtol=1e-7)
    for name, kind in {"q": "Q4_0", "k": "Q8_0", "gate": "Q4_1", "down": "Q5_0", "v": "F16", "up": "F32"}.items():
        found, wanted = read.layer(1)[name], dense(original.layer(1)[name])
        kind_of = gguf.GGMLQuantizationType[kind]
        rounded = gguf.quants.dequantize(gguf.quants.quantize(wanted, kind_of), kind_of)
        np.testing.assert_array_equal(dense(found), rounded.astype(np.float32))
        assert isinstance(found, Blocks) == (kind in ("Q4_0", "Q8_0", "Q4_1"))
    assert isinstance(read.outer("embed"), Blocks)


def test_gguf_of_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra llm")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"architecture mamba.*Supported in GGUF files: llama, qwen2"):
        open_checkpoint(tmp_path / "model.gguf")
