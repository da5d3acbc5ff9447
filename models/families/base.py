"""What a family of decoders is: one architecture with its configurations and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import Tensor

from ..decoder import Decoder
from ..errors import ModelError
from ..latents import LatentSpec
from ..statistics import LatentStatistics


class Config(Protocol):
    """The configuration of one decoder of a family, immutable."""

    @property
    def spec(self) -> LatentSpec:
        """The latent space that the decoder takes."""

    def to_json(self) -> str:
        """A JSON object that `from_dict` reads, with the class name that the family reads in `_class_name`."""

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> Self:
        """Read a configuration; `where` names it in errors. Raises ModelError with all faults at once."""


State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: what people call it, in lower case with hyphens.
        title: one line for lists: what it is and whose.
        config: the class of its configurations.
        decoder: makes a decoder of a configuration, with random weights.
        presets: configurations by name, which no other family has.
        class_names: the `_class_name` of the configuration files that it reads. Families may share one where none
            reads the other's configurations.
        own_weights: the decoder's weights, by the decoder's own names, from all that a checkpoint file holds. It
            leaves out only what it knows not to be the decoder's; what it leaves in must fit.
        config_of: the configuration that a checkpoint without a configuration file has, told from its weights;
            None where weights do not tell.
        statistics_of: latent statistics that a checkpoint file holds beside the weights.
        student: whether `distill` trains it.
        causal: the causal form of a configuration, in which no frame depends on a later latent frame; None where
            there is none.
    """

    name: str
    title: str
    config: type[Config]
    decoder: Callable[[Any], Decoder]
    presets: Mapping[str, Config]
    class_names: tuple[str, ...]
    own_weights: Callable[[State, Any], dict[str, Tensor]]
    config_of: Callable[[State], Config | None] = lambda state: None
    statistics_of: Callable[[State], LatentStatistics | None] = lambda state: None
    student: bool = False
    causal: Callable[[Any], Config] | None = None


def weights_except(*left_out: str) -> Callable[[State, Any], dict[str, Tensor]]:
    """`own_weights` of a family whose checkpoints hold a bare decoder, or a whole autoencoder with `decoder.*`.

    Args:
        left_out: how the names begin of what such a checkpoint holds beside the decoder.
    """

    def own_weights(state: State, config: Any) -> dict[str, Tensor]:
        kept = {name: value for name, value in state.items() if not name.startswith(left_out)}
        return {name.removeprefix("decoder."): value for name, value in kept.items()}

    return own_weights


class FamilyTable(dict[str, Family]):
    """Families by name; a name of a family or a preset belongs to one of them only."""

    def __init__(self, *families: Family) -> None:
        super().__init__()
        for family in families:
            self.add(family)

    def add(self, family: Family) -> None:
        """Enter a family, from anywhere: the rest of handheld then knows it. Raises ModelError for a taken name."""
        taken = [f"the family {family.name}"] if family.name in self else []
        taken += [f"the preset {name}" for name in family.presets if name in self.presets]
        if taken:
            raise ModelError(f"There already is {', '.join(taken)}: choose other names.")
        self[family.name] = family

    @property
    def presets(self) -> dict[str, Family]:
        """Names of all presets, with their families."""
        return {name: family for family in self.values() for name in family.presets}

    @property
    def classes(self) -> dict[str, tuple[Family, ...]]:
        """Class names of all configuration files that are read, with their families."""
        names = dict.fromkeys(name for family in self.values() for name in family.class_names)
        return {name: tuple(f for f in self.values() if name in f.class_names) for name in names}
