"""What `--resume` needs, as one safetensors file that is replaced in one step.

Tensors: `student.*`, `ema.*`, `loss.*` (projection heads) and `optimizer.<parameter number>.<name>`. The rest is
JSON in the file's metadata. No random state is stored: everything random is a function of the seed and the step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from handheld.files import save_tensors

from .errors import DistillError

FORMAT_VERSION = 1
NAME = "state.safetensors"


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says about itself.

    Attributes:
        step: optimizer steps done.
        seed: the recipe's.
        data: fingerprint of the videos.
        threads: of torch. With another number torch adds in another order, and results differ in their last bits.
        torch: version.
        format_version: of this file.
    """

    step: int
    seed: int
    data: str
    threads: int
    torch: str
    format_version: int = FORMAT_VERSION

    @classmethod
    def of_here(cls, step: int, seed: int, data: str) -> Facts:
        return cls(step, seed, data, torch.get_num_threads(), torch.__version__)


def save(folder: Path, facts: Facts, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Replace the checkpoint in `folder`. Whenever the process dies, the old or the new one is there, whole."""
    tensors = {
        f"{prefix}.{name}": tensor.detach()
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
    save_tensors(
        folder / NAME,
        tensors,
        DistillError,
        metadata={"handheld": json.dumps(asdict(facts))},
        make_folder=True,
    )


def exists(folder: Path) -> bool:
    return (folder / NAME).is_file()


def load(folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> Facts:
    """Put the checkpoint in `folder` into modules and optimizer. Raises DistillError if it cannot be used."""
    from safetensors import SafetensorError, safe_open

    path = folder / NAME
    try:
        with safe_open(path, "pt") as file:
            facts = Facts(**json.loads((file.metadata() or {})["handheld"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DistillError(
            f"{path} is not a checkpoint that can be read ({error}). Start again in another folder."
        ) from None
    if facts.format_version != FORMAT_VERSION:
        raise DistillError(f"{path} has format version {facts.format_version}; {FORMAT_VERSION} is read.")
    grouped: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in (*modules, "optimizer")}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        grouped.setdefault(prefix, {})[rest] = tensor
    try:
        for prefix, module in modules.items():
            module.load_state_dict(grouped[prefix])
    except RuntimeError as error:
        raise DistillError(f"{path} is of another student: {error}") from None
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in grouped["optimizer"].items():
        number, _, rest = name.partition(".")
        state.setdefault(int(number), {})[rest] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return facts
