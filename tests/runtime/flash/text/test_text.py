"""Text through packs: tokenizers, figures of decoding, quality of the modes, traces."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from handheld.runtime.errors import BundleError, RuntimeFailure
from handheld.runtime.flash import FlashError, open_pack
from handheld.runtime.flash.plan import ReplayOptions, read_device, replay
from handheld.runtime.flash.text import PackTokenizer, model_options, profile_decoding, quality, record_trace

pytest.importorskip("transformers", reason="needs the extra llm")

TOKENS = np.random.default_rng(2).integers(1, 384, 200).tolist()


@pytest.fixture(scope="module")
def pack(small_language_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small llama with a ternary selector, made by the front door's own packing."""
    from handheld.convert.llm import PackOptions, pack_model
    from handheld.models.llm import open_checkpoint

    path = tmp_path_factory.mktemp("packs") / "model.flash"
    text = np.random.default_rng(0).integers(1, 384, (8, 64))
    checkpoint = open_checkpoint(small_language_model("llama"))
    pack_model(checkpoint, path, PackOptions("int8", selector="ternary", active=0.4), text)
    return path


def test_streamed_text_is_the_decoded_text_in_whole_characters(pack: Path) -> None:
    tokenizer = PackTokenizer(pack)
    text = "Motion – «latents» 多く x"
    ids = tokenizer.encode(text)
    pieces = list(tokenizer.stream(ids))
    assert "".join(pieces) == tokenizer.decode(ids) == text
    assert len([piece for piece in pieces if piece]) > 10
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    cut = list(tokenizer.stream(ids[:-3]))
    assert "".join(cut) == tokenizer.decode(ids[:-3])


def test_chat_renders_the_template_and_nothing_that_reaches_out_of_it(pack: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model.flash"
    shutil.copytree(pack, folder)
    with pytest.raises(BundleError, match="was not taught to chat"):
        PackTokenizer(folder).chat("hello")
    template = folder / "chat_template.jinja"
    template.write_text("{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{% endfor %}<assistant>")
    assert PackTokenizer(folder).chat("hello") == "<user>hello<assistant>"
    template.write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(BundleError, match="cannot be used"):
        PackTokenizer(folder).chat("hello")


def test_pack_without_a_readable_tokenizer_is_refused(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no tokenizer\.json"):
        PackTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="is no tokenizer"):
        PackTokenizer(tmp_path)


def test_profile_counts_the_tokens_after_the_prompt(pack: Path) -> None:
    opened = open_pack(pack)
    whole = profile_decoding(opened, model_options(opened, mode="exact"), TOKENS[:5], 20)
    assert len(whole.token_ns) == whole.tokens == 20
    assert (whole.bytes_read_per_token, whole.hit_rate) == (0, 1)
    assert set(whole.shares) == {"reading", "feed_forward", "selector", "attention", "head", "engine"}
    assert min(whole.shares.values()) >= 0 < whole.shares["attention"]
    floor = opened.model_floor_bytes(model_options(opened, 1, "dense"))
    streamed = profile_decoding(opened, model_options(opened, floor, "dense"), TOKENS[:5], 20)
    assert streamed.hit_rate == 0
    # Three layers a token; what was read ahead for the first one counts as the prompt's, at most a layer.
    assert streamed.bytes_read_per_token >= (3 - 1 / 20) * 160 * opened.info.bundle_bytes
    assert streamed.held_peak_bytes <= floor
    content = json.loads(streamed.to_json())
    assert content["format"] == "handheld.flash.decode-profile"
    assert content["prompt_tokens"] == 5
    assert content["prompt_ns"] > 0
    assert content["tokens_per_s"] == pytest.approx(20e9 / sum(streamed.token_ns))
    with pytest.raises(FlashError, match="budget"):
        profile_decoding(opened, model_options(opened, 1000), TOKENS[:5], 1)


def test_quality_of_the_modes_is_that_of_their_logits(pack: Path) -> None:
    opened = open_pack(pack)
    dense, exact, selected = quality(opened, TOKENS, piece_tokens=64)
    model = opened.model(model_options(opened, mode="dense"))
    losses = []
    for at in (0, 64, 128):
        model.truncate(0)
        logits = model.decode_all(TOKENS[at : at + 64])[:-1].astype(np.float64)
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses.append(-np.log(chances[np.arange(63), TOKENS[at + 1 : at + 64]]))
    assert dense.perplexity == pytest.approx(np.exp(np.concatenate(losses).mean()))
    assert (dense.mode, exact.mode, selected.mode) == ("dense", "exact", "selected")
    assert exact.agreement == 1
    assert 0 < selected.agreement < 1
    assert dense.computed_share == exact.computed_share == 1
    with pytest.raises(RuntimeFailure, match="200 tokens, and one piece is 256"):
        quality(opened, TOKENS)


def test_recorded_trace_replays_within_memory(pack: Path) -> None:
    opened = open_pack(pack)
    trace = record_trace(opened, model_options(opened, mode="selected"), TOKENS[:30])
    assert trace.tokens == 30
    assert trace.shape.fixed_bytes > trace.shape.always_bytes > 0
    # Near the share that packing was asked for, on another text.
    assert trace.counts.mean() / 160 == pytest.approx(0.4, abs=0.1)
    # The hottest come first in the pack's order, as far as random weights have any.
    assert (trace.positions < 80).mean() > 0.51
    options = ReplayOptions(trace.shape.fixed_bytes + 50_000)
    small = replay(trace, read_device("m1-max"), options)
    large = replay(trace, read_device("m1-max"), ReplayOptions(1 << 30, policy="lru"))
    assert 0 < small.hit_rate < large.hit_rate <= 1
    assert small.bytes_read > large.bytes_read
