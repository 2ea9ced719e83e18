import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from regforge.files import StorageError
from regforge.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    TrainingState,
    restore_optimizer,
)


def trained(optimizer_class: type = torch.optim.AdamW, steps: int = 3):
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = optimizer_class(module.parameters(), lr=0.1)
    for _ in range(steps):
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


def snapshot(step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    return TrainingState(
        step=step,
        weights=dict(module.named_parameters()),
        optimizer=optimizer.state_dict(),
        average={"weight": module.weight},
        scaler={"scale": 1024.0, "_growth_tracker": 3},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    "optimizer_class",
    [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad, torch.optim.Rprop, torch.optim.NAdam],
)
def test_going_on_from_a_checkpoint_is_going_on(folder: Path, optimizer_class: type) -> None:
    module, optimizer = trained(optimizer_class)
    checkpoints = Checkpoints(folder, keep=2, digest="d")
    checkpoints.save(snapshot(3, module, optimizer))
    # What is written is how things were when it was saved.
    saved = [parameter.detach().clone() for parameter in module.parameters()]
    module.weight.data.zero_()
    checkpoints.wait()

    found = Checkpoints(folder, keep=2, digest="d").newest(at_most=10)
    assert found is not None
    assert (found.step, found.scaler["scale"]) == (3, 1024.0)
    assert torch.equal(found.average["weight"], saved[0])
    kinds = {"average.safetensors", "optimizer.safetensors", "weights.safetensors", "state.json"}
    assert {each.name for each in (folder / "step-000003").iterdir()} == kinds  # no pickles
    again, other = trained(optimizer_class, steps=1)
    again.load_state_dict(dict(found.weights))
    restore_optimizer(other, found)
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), saved, strict=True))
    module.weight.data.copy_(saved[0])
    for each, its in ((module, optimizer), (again, other)):
        each(torch.ones(1, 3)).square().sum().backward()
        its.step()
    assert torch.equal(again.weight, module.weight)
    assert torch.equal(again.bias, module.bias)


def test_only_the_newest_are_kept(folder: Path) -> None:
    checkpoints = Checkpoints(folder, keep=2, digest="d")
    for step in (5, 10, 15, 1_000_000):
        checkpoints.save(snapshot(step, *trained()))
    checkpoints.wait()
    assert sorted(each.name for each in folder.iterdir()) == ["step-000015", "step-1000000"]
    assert [path.name for path in checkpoints.all()] == ["step-000015", "step-1000000"]
    assert checkpoints.newest(at_most=100).step == 15
    assert checkpoints.newest(at_most=14) is None


@pytest.mark.parametrize("harm", ["weights.safetensors", "state.json", "missing", "unfinished"])
def test_a_broken_one_is_passed_over_and_replaced(folder: Path, harm: str) -> None:
    checkpoints = Checkpoints(folder, keep=3, digest="d")
    for step in (5, 10):
        path = checkpoints.save(snapshot(step, *trained()))
    checkpoints.wait()
    if harm == "missing":
        (path / "optimizer.safetensors").unlink()
    elif harm == "unfinished":  # killed while writing
        path.rename(path.with_name(f".unfinished-{path.name}"))
    else:
        content = (path / harm).read_bytes()
        (path / harm).write_bytes(content[: len(content) // 2])
    found = checkpoints.newest(at_most=10)
    assert found is not None
    assert found.step == 5
    checkpoints.save(snapshot(10, *trained()))
    checkpoints.wait()
    assert checkpoints.newest(at_most=10).step == 10
    assert not list(folder.glob(".unfinished-*"))


def test_one_of_another_recipe_version_or_optimizer_is_refused(folder: Path) -> None:
    checkpoints = Checkpoints(folder, keep=3, digest="d")
    path = checkpoints.save(snapshot(5, *trained()))
    checkpoints.wait()
    with pytest.raises(CheckpointError, match="another recipe"):
        Checkpoints(folder, keep=3, digest="e").newest(at_most=10)
    other = torch.optim.AdamW(nn.Linear(3, 2, bias=False).parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_optimizer(other, checkpoints.newest(at_most=10))
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 0}))
    with pytest.raises(CheckpointError, match="another version"):
        checkpoints.newest(at_most=10)


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_said_once(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints", keep=3, digest="d")
    checkpoints.save(snapshot(5, *trained()))
    with pytest.raises(StorageError, match="cannot be written"):
        checkpoints.wait()
    checkpoints.wait()  # said once

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    checkpoints = Checkpoints(folder, keep=3, digest="d")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    checkpoints.save(snapshot(5, *trained()))
    with pytest.raises(StorageError, match="disk is full"):
        checkpoints.wait()
