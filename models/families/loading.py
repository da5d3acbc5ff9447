"""Any family's decoder: by a preset's name, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import load_weights, locate, read_state
from ..decoder import Decoder
from ..errors import ModelError
from ..reading import read_json
from ..statistics import LatentStatistics
from .base import Config, Family, FamilyTable


def preset_config(table: FamilyTable, name: str, *, causal: bool = False) -> tuple[Family, Config]:
    """A preset by its name. Raises ModelError for an unknown one, and where it has no causal form."""
    family = table.presets.get(name)
    if family is None:
        raise ModelError(f"No preset {name!r}; there are: {', '.join(table.presets)}.")
    config = family.presets[name]
    return family, causal_form(family, config) if causal else config


def causal_form(family: Family, config: Config) -> Config:
    """A configuration in which no frame depends on a later latent frame. Raises ModelError where there is none."""
    if family.causal is None:
        raise ModelError(f"Decoders of the family {family.name} have no causal form: leave causal out.")
    return family.causal(config)


def read_config(table: FamilyTable, path: Path) -> tuple[Family, Config]:
    """A configuration file and the family that its `_class_name` says.

    A file without a class name, or with one that families share, is one of the family that can read it, if there
    is exactly one.
    """
    data = read_json(path)
    name = data.get("_class_name")
    families = tuple(table.values()) if name is None else table.classes.get(str(name), ())
    if not families:
        raise ModelError(
            f"{path} is of class {name}, which is no family's; there are: {', '.join(table.classes)}. A module "
            "of your own is exported as package.module:factory."
        )
    if len(families) == 1:
        return families[0], families[0].config.from_dict(data, str(path))
    able: list[tuple[Family, Config]] = []
    faults = []
    for family in families:
        try:
            able.append((family, family.config.from_dict(data, str(path))))
        except ModelError as error:
            faults.append(f"  {family.name}: {error}")
    if len(able) != 1:
        found = ", ".join(family.name for family, _ in able) or "none"
        raise ModelError(
            f"{path} has {'no _class_name' if name is None else f'the _class_name {name}'}, and of the families "
            f"{found} can read it. Write the class name of one family, and its keys, into it: "
            f"{', '.join(table.classes)}.\n" + "\n".join(faults)
        )
    return able[0]


def load_decoder(
    table: FamilyTable,
    source: str | Path,
    *,
    config: Config | str | Path | None = None,
    subfolder: str | None = None,
    torch_dtype: torch.dtype | None = None,
    local_files_only: bool = False,
) -> Decoder:
    """Load a decoder of any family in the table, in eval mode.

    Args:
        source: a folder with `config.json` and `diffusion_pytorch_model.safetensors`, a pipeline's folder with
            those in `vae`, a hub id of either, or one checkpoint file (`.safetensors`, `.pth`, `.ckpt`) with the
            released state-dict names.
        config: a configuration, a preset's name or a released JSON file; needed for a checkpoint file that has no
            `config.json` beside it and whose weights do not tell the configuration.
        subfolder: folder inside `source`.
        torch_dtype: dtype of the weights; fp32 by default.
        local_files_only: never ask the hub.

    Raises:
        ModelError: nothing usable at `source`, or weights that do not match the configuration exactly.
    """
    files, config_file = locate(source, subfolder, local_files_only)
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_state(file)
    family, chosen = _chosen(table, config, config_file, state, source)
    with torch.device("meta"):
        decoder = family.decoder(chosen)
    load_weights(decoder, family.own_weights(state, chosen), str(source))
    if (found := family.statistics_of(state)) is not None:
        found.check(decoder.spec.channels)
        decoder.stored_statistics = found
    return decoder.to(torch_dtype or torch.float32).eval()


def _chosen(
    table: FamilyTable,
    config: Config | str | Path | None,
    config_file: Path | None,
    state: Mapping[str, Tensor],
    source: str | Path,
) -> tuple[Family, Any]:
    if isinstance(config, str) and config in table.presets:
        return preset_config(table, config)
    if isinstance(config, str | Path):
        return read_config(table, Path(config))
    if config is not None:
        for family in table.values():
            if isinstance(config, family.config):
                return family, config
        raise ModelError(f"A {type(config).__name__} is no configuration of the families {', '.join(table)}.")
    if config_file is not None:
        return read_config(table, config_file)
    told = [(family, found) for family in table.values() if (found := family.config_of(state)) is not None]
    if len(told) != 1:
        raise ModelError(
            f"{source} is a checkpoint without a config.json beside it, and its weights do not tell its "
            f"configuration: pass config= (--config) as a preset ({', '.join(table.presets)}) or as the released "
            "JSON file."
        )
    return told[0]


def statistics_in(state: Mapping[str, Tensor]) -> LatentStatistics | None:
    """The tensors `latents_mean` and `latents_std` of a checkpoint; None where it has neither.

    Raises ModelError where it has one of them only.
    """
    found = {name: value for name, value in state.items() if name.endswith(("latents_mean", "latents_std"))}
    if not found:
        return None
    mean = [value for name, value in found.items() if name.endswith("latents_mean")]
    std = [value for name, value in found.items() if name.endswith("latents_std")]
    if len(mean) != 1 or len(std) != 1:
        raise ModelError(f"The checkpoint holds {', '.join(found)}: one mean and one std are needed.")
    return LatentStatistics(tuple(mean[0].flatten().tolist()), tuple(std[0].flatten().tolist()))
