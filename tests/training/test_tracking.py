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
