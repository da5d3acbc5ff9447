"""The flash engine's decode loop: where a token's time goes, and what reading ahead is worth, in one run.

    python benchmarks/flash_model.py --shape smollm2 --dtype int4m --out flash_model.json

A whole model of random weights (values do not matter to time) decodes the same tokens in every variant, in turn,
token by token. Times are medians over tokens; `overhead` is the engine's own time per layer, outside of reads,
selector and arithmetic. Half of the feed-forward weights fit the budget where it is said so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from handheld.runtime.flash import (
    UNLIMITED,
    FeedForward,
    LayerSelector,
    Model,
    ModelConfig,
    ModelOptions,
    Pack,
    PackSpec,
    PackWriter,
    SessionOptions,
    open_pack,
)

# layers, d_model, d_ff, heads, kv_heads, vocab
SHAPES = {
    "smollm2": (30, 576, 1536, 9, 3, 49152),
    "1b": (16, 2048, 8192, 32, 8, 32000),
    "tiny": (2, 256, 1024, 4, 2, 512),
}
GROUP = 32


def write_pack(path: Path, shape: str, dtype: str) -> PackSpec:
    layers, d_model, d_ff, heads, kv_heads, vocab = SHAPES[shape]
    spec = PackSpec(
        layers=layers, d_model=d_model, d_ff=d_ff, dtype=dtype, selector="ternary", selector_size=GROUP
    )  # fmt: skip
    head_dim = d_model // heads
    rng = np.random.default_rng(0)

    def weights(*size: int) -> np.ndarray:
        return rng.standard_normal(size, dtype=np.float32) / np.float32(np.sqrt(size[-1]))

    config = ModelConfig(
        architecture="llama", vocab=vocab, heads=heads, kv_heads=kv_heads, head_dim=head_dim, norm="rms",
        norm_eps=1e-5, position="rope", max_positions=2048, group_size=GROUP,
        dtypes={"embed": "int8", "attention": dtype},
    )  # fmt: skip
    given = FeedForward(gate=weights(d_ff, d_model), up=weights(d_ff, d_model), down=weights(d_model, d_ff))
    matrices = {"q": (d_model, d_model), "k": (kv_heads * head_dim, d_model), "v": (kv_heads * head_dim, d_model),
                "o": (d_model, d_model)}  # fmt: skip
    with PackWriter(path, spec) as writer:
        writer.add_resident("model.config", config.encode())
        writer.add_matrix("model.embed", weights(vocab, d_model), "int8", GROUP)
        frequencies = 10000.0 ** -(np.arange(0, head_dim, 2) / head_dim)
        writer.add_resident("model.rope_inv_freq", frequencies.astype(np.float32))
        writer.add_resident("model.norm", np.ones(d_model, np.float32))
        for layer in range(layers):
            writer.add_layer(given, selector=LayerSelector(0.0))
            for name, size in matrices.items():
                writer.add_matrix(f"model.{layer}.{name}", weights(*size), dtype, GROUP)
            for name in ("attn_norm", "ffn_norm"):
                writer.add_resident(f"model.{layer}.{name}", np.ones(d_model, np.float32))
    return spec


def variants(pack: Pack, spec: PackSpec, threads: int) -> dict[str, Model]:
    row_bytes = pack.info.bundle_bytes + 20

    def model(share: float, **fields: Any) -> Model:
        session = {name: fields.pop(name) for name in list(fields) if name in SessionOptions.__dataclass_fields__}
        session = {"compute_threads": threads, **session}
        unpinned = SessionOptions(0, **{**session, "pinned_neurons": 0})
        floor = pack.model_floor_bytes(ModelOptions(unpinned, **fields))
        budget = floor + round(share * spec.layers * spec.d_ff) * row_bytes
        return pack.model(ModelOptions(SessionOptions(budget, **session), **fields))

    selected = {"mode": "selected", "select_share": 0.15, "window_tokens": UNLIMITED}
    half = {"mode": "dense", "pinned_neurons": spec.d_ff // 2}
    exact = {"mode": "exact", "window_tokens": UNLIMITED}
    return {
        "dense, all resident": model(1, mode="dense", pinned_neurons=UNLIMITED),
        "dense, half resident": model(0.5, read_ahead=False, **half),
        "dense, half resident, reading ahead": model(0.5, **half),
        "dense, nothing resident": model(0, mode="dense", read_ahead=False),
        "dense, nothing resident, reading ahead": model(0, mode="dense"),
        "exact, half resident": model(0.5, read_ahead=False, **exact),
        "exact, half resident, reading ahead": model(0.5, **exact),
        "selected 15 %, all resident": model(1, **selected, pinned_neurons=UNLIMITED, compute_resident=False),
        "selected 15 %, half resident": model(0.5, **selected),
        "selected 15 %, half resident, prefetching": model(0.5, prefetch=True, **selected),
    }


COUNTERS = ("total_ns", "attention_ns", "head_ns", "overhead_ns")
SESSION_COUNTERS = ("wait_ns", "select_ns", "compute_ns", "table_ns", "bytes_read", "prefetched")


def snapshot(model: Model) -> dict[str, int]:
    stats = model.stats()
    return {name: getattr(stats, name) for name in COUNTERS} | {
        name: getattr(stats.session, name) for name in SESSION_COUNTERS
    }


def measure(models: dict[str, Model], layers: int, tokens: int, warmup: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(1)
    rows: dict[str, list[dict[str, int]]] = {name: [] for name in models}
    for at in range(tokens + warmup):
        token = rng.integers(0, 500, 1)
        for name, model in models.items():
            before = snapshot(model)
            model.decode(token)
            after = snapshot(model)
            if at >= warmup:
                rows[name].append({key: after[key] - before[key] for key in after})
    result = {}
    for name, taken in rows.items():
        median = {key: statistics.median(row[key] for row in taken) for key in taken[0]}
        result[name] = median | {"overhead_us_per_layer": median["overhead_ns"] / layers / 1000}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--dtype", choices=["fp16", "int8", "int4", "int4m"], default="int4m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--folder", type=Path, help="where to write the pack; a disk, not a memory file system")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder or Path.cwd()) as folder:
        path = Path(folder) / "bench.flash"
        spec = write_pack(path, arguments.shape, arguments.dtype)
        pack = open_pack(path)
        print(
            f"{spec.layers} layers, d_model {spec.d_model}, d_ff {spec.d_ff}, {spec.dtype}, {os.cpu_count()} cores"
        )
        if not pack.info.direct_io:
            print("This file system refuses direct reads: the page cache takes part, and the ratios say little.")
        models = variants(pack, spec, arguments.threads)
        result = measure(models, spec.layers, arguments.tokens, warmup=8)
    columns = ("total", "attention", "head", "compute", "select", "wait", "table")
    print("".join([" " * 42, *(f"{name:>10}" for name in columns), "   MB read   overhead"]))
    for name, row in result.items():
        times = "".join(f"{row[column + '_ns'] / 1e6:7.2f} ms" for column in columns)
        print(f"{name:42}{times}{row['bytes_read'] / 1e6:10.2f}{row['overhead_us_per_layer']:7.1f} us a layer")
    if arguments.out:
        report = {"arguments": {k: str(v) for k, v in vars(arguments).items()}, "variants": result}
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
