"""Packing a checkpoint: one layer in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from handheld.models.llm import Blocks, Checkpoint, DecoderConfig, dense
from handheld.models.llm.decoder import Layer
from handheld.runtime.flash import FeedForward, ModelConfig, PackSpec, PackWriter
from handheld.runtime.flash.layout import CHAT_TEMPLATE_NAME, TOKENIZER_NAME
from handheld.runtime.flash.quantise import GROUPED, Rows, StoredRows, join_int4m, join_scaled

from ..errors import ExportError
from .calibration import Calibration, Observed
from .selectors import SELECTORS

_GROUP_SIZE = 32
_DTYPES = ("fp32", "fp16", "int8", "int4", "int4m")
# A model with a SiLU has no zeros: without a choice, these are the neurons that matter most.
_DEFAULT_ACTIVE = 0.3
_NORMS = ("attn_norm", "attn_norm_bias", "ffn_norm", "ffn_norm_bias")
_ATTENTION = ("q", "k", "v", "o")


@dataclass(frozen=True)
class PackOptions:
    """How a model is stored.

    dtype: of the feed-forward layers and the attention. embed_dtype: of embedding and head; None: int8 where dtype
    is an integer type, else dtype. Blocks of a GGUF file that fit the dtype are stored as they are, but for down
    projections, whose blocks run across neurons and are quantised anew.
    selector: `none`, `ternary` or `low-rank`. active: the share of neurons that count as active, over the
    calibration text; it sets exact mode's threshold and the selector's. None: 0.3, or, where the model has a ReLU,
    what is not zero.

    Raises ExportError listing every field that is out of range.
    """

    dtype: str = "int8"
    embed_dtype: str | None = None
    selector: str = "none"
    active: float | None = None

    def __post_init__(self) -> None:
        faults = [
            f"{name} is {value}, allowed are {', '.join(_DTYPES)}"
            for name, value in (("dtype", self.dtype), ("embed_dtype", self.embed_dtype))
            if value is not None and value not in _DTYPES
        ]
        if self.selector not in ("none", *SELECTORS):
            faults.append(f"selector is {self.selector}, allowed are none, {', '.join(SELECTORS)}")
        if self.active is not None and not 0 < self.active <= 1:
            faults.append(f"active is {self.active}, allowed are shares over 0, up to 1")
        if faults:
            raise ExportError("This cannot be packed: " + "; ".join(faults) + ".")

    @property
    def stored_embed_dtype(self) -> str:
        return self.embed_dtype or ("int8" if self.dtype in GROUPED else self.dtype)


def pack_model(
    checkpoint: Checkpoint,
    out: str | os.PathLike[str],
    options: PackOptions,
    calibration_tokens: np.ndarray | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> None:
    """Write the pack of a model, atomically.

    calibration_tokens: (N, T) ids, N pieces of text; without them every neuron with an output counts as active,
    the order is the checkpoint's, and there can be no selector.

    Raises ExportError, ModelError for a fault of the checkpoint, BundleError for a target that exists or a full
    disk.
    """
    if calibration_tokens is None and (options.selector != "none" or options.active is not None):
        raise ExportError("A selector, and a share of active neurons, need a calibration text. Give --calibrate.")
    config = checkpoint.config
    tokenizer = checkpoint.tokenizer()
    calibration = None
    if calibration_tokens is not None:
        calibration = Calibration(checkpoint, calibration_tokens, _active(config, options))
    with PackWriter(out, _spec(config, options), overwrite) as writer:
        for index in range(config.layers):
            progress(index, config.layers, f"layer {index}")
            layer = checkpoint.layer(index)
            _add_feed_forward(writer, layer, options, calibration.observe(layer) if calibration else None)
            _add_attention(writer, index, layer, options.dtype)
        progress(config.layers, config.layers, "embedding")
        _add_outer(writer, checkpoint, options)
        if tokenizer is not None:
            writer.add_file(TOKENIZER_NAME, tokenizer.tokenizer)
            if tokenizer.chat_template is not None:
                writer.add_file(CHAT_TEMPLATE_NAME, tokenizer.chat_template)


def _active(config: DecoderConfig, options: PackOptions) -> float | None:
    if options.active is None and config.activation != "relu":
        return _DEFAULT_ACTIVE
    return options.active


def _spec(config: DecoderConfig, options: PackOptions) -> PackSpec:
    kind = SELECTORS.get(options.selector)
    return PackSpec(
        layers=config.layers,
        d_model=config.d_model,
        d_ff=config.d_ff,
        activation=config.activation,
        gated=config.gated,
        dtype=options.dtype,
        group_size=_GROUP_SIZE,
        up_bias=not config.gated,
        down_bias=not config.gated,
        selector="none" if kind is None else kind.format_name,
        selector_size=0 if kind is None else kind.size(config),
    )


def _model_config(config: DecoderConfig, options: PackOptions) -> ModelConfig:
    stored = {"embed": options.stored_embed_dtype, "attention": options.dtype}
    if not config.tied:
        stored["head"] = options.stored_embed_dtype
    return ModelConfig(
        architecture=config.family,  # type: ignore[arg-type]
        vocab=config.vocab,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        norm=config.norm,  # type: ignore[arg-type]
        norm_eps=config.norm_eps,
        position="learned" if config.rope_inv_freq is None else "rope",
        max_positions=config.max_positions,
        position_offset=config.position_offset,
        rope_scale=config.rope_scale,
        eos=config.eos,
        group_size=_GROUP_SIZE,
        dtypes={kind: dtype for kind, dtype in stored.items() if dtype in GROUPED},
    )


def _add_feed_forward(writer: PackWriter, layer: Layer, options: PackOptions, observed: Observed | None) -> None:
    weights = FeedForward(
        up=_rows(layer["up"], options.dtype),
        down=dense(layer["down"]),
        gate=_rows(layer["gate"], options.dtype) if "gate" in layer else None,
        up_bias=_optional(layer, "up_bias"),
        down_bias=_optional(layer, "down_bias"),
    )
    if observed is None:
        writer.add_layer(weights)
        return
    kind = SELECTORS.get(options.selector)
    selector = None
    if kind is not None:
        share = float(observed.active.float().mean())
        selector = kind.fit(layer, observed, writer.spec.selector_size, share)
    writer.add_layer(
        weights,
        order=observed.order,
        importance=observed.importance,
        threshold=observed.threshold,
        selector=selector,
    )


def _add_attention(writer: PackWriter, index: int, layer: Layer, dtype: str) -> None:
    for name in _ATTENTION:
        writer.add_matrix(f"model.{index}.{name}", _rows(layer[name], dtype), dtype, _GROUP_SIZE)
    for name in (*_NORMS, *(f"{name}_bias" for name in _ATTENTION)):
        if name in layer:
            writer.add_resident(f"model.{index}.{name}", dense(layer[name]))


def _add_outer(writer: PackWriter, checkpoint: Checkpoint, options: PackOptions) -> None:
    config = checkpoint.config
    for name in config.outer_shapes():
        tensor = checkpoint.outer(name)
        if name in ("embed", "head"):
            dtype = options.stored_embed_dtype
            writer.add_matrix(f"model.{name}", _rows(tensor, dtype), dtype, _GROUP_SIZE)
        else:
            writer.add_resident(f"model.{name}", dense(tensor))
    if config.rope_inv_freq is not None:
        writer.add_resident("model.rope_inv_freq", config.rope_inv_freq)
    writer.add_resident("model.config", _model_config(config, options).encode())


def _rows(tensor: np.ndarray | Blocks, dtype: str) -> Rows:
    """Blocks that the dtype holds as they are, else floats."""
    if isinstance(tensor, Blocks):
        own = "int4m" if tensor.minimums is not None else f"int{tensor.bits}"
        if own == dtype:
            if tensor.minimums is not None:
                data = join_int4m(tensor.codes, tensor.scales, tensor.minimums)
            else:
                data = join_scaled(dtype, tensor.codes, tensor.scales)
            return StoredRows(data, dtype, tensor.shape[1], _GROUP_SIZE)
    return dense(tensor)


def _optional(layer: Layer, name: str) -> np.ndarray | None:
    return dense(layer[name]) if name in layer else None
