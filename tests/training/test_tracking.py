"""What trackers were told, read back with their own readers."""

from pathlib import Path

import pytest
from training_runs import QUIET, recipe

from regforge.training import train
from regforge.training.recording import history


@pytest.mark.slow
def test_tensorboard_reads_what_the_log_says(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = recipe(
        tracking="tensorboard",
        optimizer={"steps": 3},
        checkpoint={"every": 1},
        validation={"prompts": ["a cat"], "every": 2},
    )
    train(made, tmp_path, reporter=QUIET)
    folders = {path.parent for path in (tmp_path / "tracking").rglob("events.out.tfevents.*")}
    read = {}
    shown = []
    for folder in folders:
        events = EventAccumulator(str(folder)).Reload()
        shown += [image.step for tag in events.Tags()["images"] for image in events.Images(tag)]
        for tag in events.Tags()["scalars"]:
            read[tag] = {each.step: each.value for each in events.Scalars(tag)}
    log = history(tmp_path)
    for tag in ("instance_loss", "prior_loss", "lr"):
        assert read[tag] == {each["step"]: pytest.approx(each[tag]) for each in log}
    assert 2 in shown


@pytest.mark.slow
def test_trackio_reads_what_the_log_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its releases so far want an older Pillow than we are tested with, so CI has none."""
    pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    for steps in (2, 3):
        made = recipe(tracking="trackio", optimizer={"steps": steps}, checkpoint={"every": 1})
        train(made, tmp_path / "run", reporter=QUIET)
    assert SQLiteStorage.get_runs("cat") == ["run"]
    read = {each["step"]: each for each in SQLiteStorage.get_logs("cat", "run")}
    log = history(tmp_path / "run")
    assert [read[each["step"]]["instance_loss"] for each in log] == [
        pytest.approx(each["instance_loss"]) for each in log
    ]
