"""A small random language model as a flash pack, and what the engine's Python door generates with it.

    python android_demo/check/pack.py FOLDER     writes FOLDER/model.flash and FOLDER/expected.json

The JVM tests open the pack through JNI and must get the same tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from handheld.runtime.flash import (
    FeedForward,
    ModelConfig,
    ModelOptions,
    PackSpec,
    PackWriter,
    SessionOptions,
    open_pack,
)

VOCAB, LAYERS, D_MODEL, D_FF, HEADS, KV_HEADS = 320, 2, 64, 128, 4, 2
PROMPT = [5, 17, 200, 3]


def main(folder: Path) -> None:
    generator = np.random.default_rng(0)
    head_dim = D_MODEL // HEADS

    def weights(*shape: int) -> np.ndarray:
        return (generator.standard_normal(shape) * 0.2).astype(np.float32)

    config = ModelConfig(
        architecture="llama",
        vocab=VOCAB,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=head_dim,
        norm="rms",
        norm_eps=1e-5,
        position="rope",
        max_positions=256,
        dtypes={"embed": "fp16", "attention": "fp16"},
    )
    ones = np.ones(D_MODEL, np.float32)
    with PackWriter(
        folder / "model.flash", PackSpec(layers=LAYERS, d_model=D_MODEL, d_ff=D_FF, dtype="int8")
    ) as pack:
        pack.add_resident("model.config", config.encode())
        pack.add_matrix("model.embed", weights(VOCAB, D_MODEL), "fp16")
        pack.add_resident(
            "model.rope_inv_freq", (10000.0 ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
        )
        pack.add_resident("model.norm", ones)
        for layer in range(LAYERS):
            pack.add_layer(FeedForward(weights(D_FF, D_MODEL), weights(D_MODEL, D_FF), weights(D_FF, D_MODEL)))
            for name in ("attn_norm", "ffn_norm"):
                pack.add_resident(f"model.{layer}.{name}", ones)
            for name, rows in (
                ("q", D_MODEL),
                ("k", KV_HEADS * head_dim),
                ("v", KV_HEADS * head_dim),
                ("o", D_MODEL),
            ):
                pack.add_matrix(f"model.{layer}.{name}", weights(rows, D_MODEL), "fp16")
    opened = open_pack(folder / "model.flash")
    model = opened.model(ModelOptions(SessionOptions(budget_bytes=32 << 20)))
    expected = {
        "prompt": PROMPT,
        "tokens": list(model.generate(PROMPT, 48)),
        "vocab": VOCAB,
        "identity": opened.info.identity.hex(),
    }
    (folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
