import io
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from training_runs import QUIET, Signalling, recipe

from regforge.journal import Reporter
from regforge.training import train

LORA = Path("lora", "pytorch_lora_weights.safetensors")


def with_average(steps: int, **checkpoint: Any):
    return recipe(
        optimizer={"steps": steps, "lr": 1e-3, "ema": True, "ema_decay": 0.5},
        checkpoint=checkpoint,
    )


def content(folder: Path, step: int) -> bytes:
    return (folder / "snapshots" / f"step-{step:06d}" / LORA).read_bytes()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_snapshot_is_what_the_run_would_have_ended_with(tmp_path: Path) -> None:
    shorter = train(with_average(2), tmp_path / "shorter", reporter=QUIET)
    longer = train(with_average(3, snapshots=[3, 2, 9]), tmp_path / "longer", reporter=QUIET)
    assert content(longer.folder, 2) == shorter.weights.read_bytes()
    assert content(longer.folder, 3) == longer.weights.read_bytes() != content(longer.folder, 2)
    assert files(longer.folder / "snapshots") == [
        "step-000002/lora/pytorch_lora_weights.safetensors",
        "step-000003/lora/pytorch_lora_weights.safetensors",
    ]


def test_snapshots_that_come_too_late_are_named(tmp_path: Path) -> None:
    train(with_average(2), tmp_path, reporter=QUIET)
    # It does not change where training goes, so it may be asked for later; of step 2 there is a
    # checkpoint. The second time there is nothing to train.
    for snapshots in ([1, 2, 3], [1]):
        told = io.StringIO()
        train(with_average(3, snapshots=snapshots), tmp_path, reporter=Reporter(stream=told))
        assert "No snapshot of step 1: trained before it was asked for" in told.getvalue()
        names = [name.split("/")[0] for name in files(tmp_path / "snapshots")]
        assert names == ["step-000002", "step-000003"]


@pytest.mark.slow
def test_a_stopped_run_has_the_snapshots_of_one_that_was_not(tmp_path: Path) -> None:
    each = with_average(5, snapshots=[2, 3, 4], every=10)
    train(each, tmp_path / "whole", reporter=QUIET)
    with pytest.raises(KeyboardInterrupt):
        train(each, tmp_path / "stopped", reporter=Signalling(signal.SIGTERM, at=2))
    assert files(tmp_path / "stopped" / "snapshots"), "stopped too early to show anything"
    train(each, tmp_path / "stopped", reporter=QUIET)
    for step in (2, 3, 4):
        assert content(tmp_path / "stopped", step) == content(tmp_path / "whole", step)


@pytest.mark.slow
def test_what_is_trained_again_is_kept_or_made_again(tmp_path: Path) -> None:
    each = with_average(5, snapshots=[2, 3, 4], every=2, keep=3)
    train(each, tmp_path, reporter=QUIET)
    before = {step: content(tmp_path, step) for step in (2, 3, 4)}
    # As after a kill at step 4, before its snapshot: that of 3 is there, and the checkpoint of 2.
    for lost in ("checkpoints/step-000004", "checkpoints/step-000005", "snapshots/step-000004"):
        shutil.rmtree(tmp_path / lost)
    (tmp_path / LORA).unlink()
    said = io.StringIO()
    train(each, tmp_path, reporter=Reporter(stream=said))
    assert "Going on after step 2." in said.getvalue()
    assert "No snapshot" not in said.getvalue()
    assert {step: content(tmp_path, step) for step in (2, 3, 4)} == before


@pytest.mark.slow
def test_the_snapshot_of_a_full_fine_tune_is_a_pipeline(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    each = recipe(
        method={"kind": "full"},
        optimizer={"steps": 2, "lr": 1e-5},
        checkpoint={"snapshots": [1], "every": 2},
    )
    made = train(each, tmp_path, reporter=QUIET)
    snapshot = DiffusionPipeline.from_pretrained(tmp_path / "snapshots" / "step-000001" / "model")
    end = DiffusionPipeline.from_pretrained(made.weights)
    moved = snapshot.unet.conv_in.weight - end.unet.conv_in.weight
    assert 0 < float(moved.detach().abs().max()) < 1e-3
