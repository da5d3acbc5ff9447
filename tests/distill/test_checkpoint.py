from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from handheld.distill import DistillError, checkpoint


def trained(steps: int, width: int = 3) -> tuple[dict[str, nn.Module], torch.optim.Optimizer]:
    torch.manual_seed(0)
    modules = {"student": nn.Linear(2, width), "loss": nn.Linear(width, 1)}
    optimizer = torch.optim.AdamW([p for m in modules.values() for p in m.parameters()], lr=0.1, fused=True)
    for _ in range(steps):
        modules["loss"](modules["student"](torch.ones(1, 2))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return modules, optimizer


def facts(step: int) -> checkpoint.Facts:
    return checkpoint.Facts.of_here(step, seed=0, data="videos")


def test_what_is_saved_is_loaded_to_the_bit_and_training_goes_on_equally(tmp_path: Path):
    modules, optimizer = trained(3)
    checkpoint.save(tmp_path, facts(3), modules, optimizer)
    others, other_optimizer = trained(0)
    assert checkpoint.load(tmp_path, others, other_optimizer) == facts(3)
    for pair in ((modules, optimizer), (others, other_optimizer)):
        pair[0]["loss"](pair[0]["student"](torch.ones(1, 2))).sum().backward()
        pair[1].step()
    for name, module in modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, others[name].state_dict()[key])


@pytest.mark.parametrize("fails", ["fsync", "replace", "save_file"])
def test_a_write_that_fails_at_any_point_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
):
    checkpoint.save(tmp_path, facts(1), *trained(1))

    def fail(*arguments: object) -> None:
        if fails == "save_file":
            Path(arguments[1]).write_bytes(b"half of a checkpo")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file" if fails == "save_file" else f"os.{fails}", fail)
    with pytest.raises(DistillError, match=r"state.safetensors cannot be written: the disk is full"):
        checkpoint.save(tmp_path, facts(2), *trained(2))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]
    assert checkpoint.load(tmp_path, *trained(0)).step == 1


def test_what_a_kill_leaves_of_a_write_is_neither_read_nor_in_the_way(tmp_path: Path):
    checkpoint.save(tmp_path, facts(1), *trained(1))
    (tmp_path / f".{checkpoint.NAME}.partial").write_bytes(b"half")
    assert checkpoint.load(tmp_path, *trained(0)).step == 1
    checkpoint.save(tmp_path, facts(2), *trained(2))
    assert checkpoint.load(tmp_path, *trained(0)).step == 2


def test_a_truncated_checkpoint_and_one_of_another_student_are_clear_errors(tmp_path: Path):
    checkpoint.save(tmp_path, facts(1), *trained(1))
    with pytest.raises(DistillError, match="is of another student"):
        checkpoint.load(tmp_path, *trained(0, width=4))
    path = tmp_path / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DistillError, match="not a checkpoint that can be read"):
        checkpoint.load(tmp_path, *trained(0))
