import io
import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from training_runs import (
    QUIET,
    Signalling,
    differences,
    make_image,
    recipe,
    regularization,
    renamed,
    weights,
)

from regforge.journal import Reporter, read
from regforge.runs import RunFolderError
from regforge.training import TrainingFailed, train
from regforge.training.recording import history


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(e["step"], e["instance_loss"], e["prior_loss"]) for e in history(folder)]


@pytest.fixture(scope="module")
def dogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return regularization(tmp_path_factory.mktemp("dogs") / "dogs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dogs: Path):
    """A run that was never stopped, with everything whose state has to be kept."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train(stateful(dogs), folder, reporter=QUIET)


def stateful(dogs: Path, **sections):
    return recipe(
        subject=renamed(dogs.parent / "cats"),
        regularization={"dataset": str(dogs), "prior_weight": 0.5, "class_twins": 0.5},
        method={"rank": 4, "dropout": 0.2},
        optimizer={"steps": 5, "lr": 1e-3, "scheduler": "cosine", "warmup_steps": 2, "ema": True},
        checkpoint={"every": 2, "keep": 2},
        validation={"every": 2},
        **sections,
    )


def test_a_run_leaves_what_people_and_programs_need(whole) -> None:
    folder = whole.folder
    assert {each.name for each in folder.iterdir() if each.name != ".lock"} == {
        *("README.md", "checkpoints", "embedding", "images", "log.jsonl", "lora", "loss.svg"),
        *("recipe.yaml", "samples.webp", "state.json", "validation"),
    }
    assert whole.weights == folder / "lora" / "pytorch_lora_weights.safetensors"
    checkpoints, grids = folder / "checkpoints", folder / "validation"
    assert {path.name for path in checkpoints.iterdir()} == {"step-000004", "step-000005"}
    assert {path.name for path in grids.iterdir()} == {"step-000002.webp", "step-000004.webp"}
    assert (
        make_image(whole.samples).width > make_image(folder / "validation/step-000002.webp").width
    )
    assert (folder / "loss.svg").read_text().count("<polyline") == 2
    assert "samples.webp" in (folder / "README.md").read_text()
    assert whole.steps == 5
    assert json.dumps(whole.as_dict())
    assert "5 steps" in whole.as_text()
    steps = [entry for entry in read(folder / "log.jsonl") if entry["event"] == "train_step"]
    assert [entry["step"] for entry in steps] == [2, 4, 5]
    assert all(entry["instance_loss"] > 0 and entry["prior_loss"] > 0 for entry in steps)
    assert steps[1]["lr"] != steps[2]["lr"]


def test_a_finished_run_is_not_trained_again_nor_for_another_recipe(whole, dogs: Path) -> None:
    before = whole.weights.stat().st_mtime_ns
    again = train(stateful(dogs), whole.folder, reporter=QUIET)
    assert again.weights.stat().st_mtime_ns == before
    assert (again.instance_loss, again.prior_loss) == (whole.instance_loss, whole.prior_loss)
    with pytest.raises(RunFolderError, match=r"another recipe\. Changed: seed\.") as caught:
        train(stateful(dogs, seed=1), whole.folder, reporter=QUIET)
    assert "--fresh" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "drawing", "done"), [(signal.SIGTERM, True, 2), (signal.SIGINT, False, 3)]
)
def test_stopped_and_resumed_is_never_stopped(
    whole, dogs: Path, tmp_path: Path, number: int, drawing: bool, done: int
) -> None:
    each = stateful(dogs)
    if not drawing:
        each = each.model_copy(
            update={"validation": each.validation.model_copy(update={"every": 0})}
        )
    # It comes when step 2 is done. Images are given up; a step is finished. Then all is saved.
    with pytest.raises(KeyboardInterrupt):
        train(each, tmp_path, reporter=Signalling(number, at=2))
    assert max((tmp_path / "checkpoints").iterdir()).name == f"step-00000{done}"
    assert not (tmp_path / "lora").exists()
    train(each, tmp_path, reporter=QUIET)
    assert differences(weights(tmp_path), weights(whole.folder)) == 0
    # Where step 3 was logged alone, what is logged for 4 is another mean.
    here, there = losses(tmp_path), losses(whole.folder)
    assert (here[0], here[-1]) == (there[0], there[-1])


@pytest.mark.slow
def test_one_batch_of_eight_is_eight_batches_of_one(dogs: Path, tmp_path: Path) -> None:
    def trained(batch_size: int, accumulation: int) -> dict:
        folder = tmp_path / f"{batch_size}-{accumulation}"
        each = recipe(
            seed=2,  # with 0 a gradient lies below the 1e-8 that Adam adds, and its rounding shows
            subject=renamed(tmp_path / "cats"),
            regularization={"dataset": str(dogs), "class_twins": 0.5},
            optimizer={
                "steps": 1,
                "batch_size": batch_size,
                "gradient_accumulation": accumulation,
                "lr": 1e-4,
                "min_snr_gamma": 5,
            },
        )
        train(each, folder, reporter=QUIET)
        return weights(folder) | {"loss": losses(folder)[0][1], "prior": losses(folder)[0][2]}

    one, other = trained(8, 1), trained(1, 8)
    assert abs(one.pop("loss") - other.pop("loss")) < 1e-6
    assert abs(one.pop("prior") - other.pop("prior")) < 1e-6
    assert differences(one, other) < 1e-6


@pytest.mark.slow
def test_zero_prior_weight_is_no_dataset(dogs: Path, tmp_path: Path) -> None:
    each = recipe(regularization={"dataset": str(dogs), "prior_weight": 0}, optimizer={"steps": 2})
    without = train(each, tmp_path / "without", reporter=QUIET)
    none = train(recipe(optimizer={"steps": 2}), tmp_path / "none", reporter=QUIET)
    assert without.prior_loss is None
    assert differences(weights(without.folder), weights(none.folder)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("prior", [{"target": "teacher"}, {"class_twins": 1}], ids=str)
def test_an_untouched_lora_agrees_with_its_teacher(dogs: Path, tmp_path: Path, prior: dict) -> None:
    prior |= {"dataset": str(dogs)} if "target" in prior else {}
    each = recipe(regularization=prior, optimizer={"steps": 2}, checkpoint={"every": 1})
    train(each, tmp_path, reporter=QUIET)
    (_, _, first), (_, _, second) = losses(tmp_path)
    # Not 0: the teacher computes one example, the student two, and rounding knows.
    assert first < 1e-11
    assert second > 1e-8


@pytest.mark.slow
def test_a_drift_penalty_holds_the_weights_and_is_logged(tmp_path: Path) -> None:
    """Without regularization images; the log tells how far the weights were before each step."""

    def trained(weight: float) -> Path:
        folder = tmp_path / f"{weight:g}"
        each = recipe(
            method={"rank": 4, "alpha": 2},
            regularization={"drift_penalty": weight},
            checkpoint={"every": 1, "snapshots": [3]},
        )
        train(each, folder, reporter=QUIET)
        return folder

    def length(file: Path) -> float:
        found = load_file(file)
        pairs = ((found[name.replace(".lora_A.", ".lora_B.")], found[name]) for name in found)
        return math.sqrt(sum(float(np.square(0.5 * b @ a).sum()) for b, a in pairs if b is not a))

    tiny, much = trained(1e-9), trained(1000)
    drifts = [entry["drift"] for entry in history(tiny)]
    snapshot = tiny / "snapshots" / "step-000003" / LORA
    assert drifts[0] == 0
    assert drifts[3] == pytest.approx(length(snapshot), rel=1e-5)
    assert length(much / LORA) < 0.9 * length(tiny / LORA)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    each = recipe(
        method={"rank": 4, "alpha": 1e6},
        optimizer={"steps": 30, "lr": 10},
        checkpoint={"every": 1},
    )
    with pytest.raises(TrainingFailed, match="not a number any more at step 2") as caught:
        train(each, tmp_path, reporter=QUIET)
    assert caught.value.exit_code == 1
    assert "step-000001" in str(caught.value)
    assert "a lower optimizer.lr" in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert [step for step, _, _ in losses(tmp_path)] == [1]


@pytest.mark.slow
def test_more_steps_go_on(tmp_path: Path) -> None:
    train(recipe(optimizer={"steps": 2}), tmp_path / "a", reporter=QUIET)
    more = train(recipe(optimizer={"steps": 3}), tmp_path / "a", reporter=QUIET)
    at_once = train(recipe(optimizer={"steps": 3}), tmp_path / "b", reporter=QUIET)
    assert more.steps == 3
    assert differences(weights(more.folder), weights(at_once.folder)) == 0


def test_out_of_memory_says_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from regforge.training.families.stable_diffusion import StableDiffusion

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(StableDiffusion, "predict", no_memory)
    with pytest.raises(TrainingFailed, match=r"^Out of memory at step 1\.") as caught:
        train(recipe(optimizer={"batch_size": 2}), tmp_path, reporter=QUIET)
    said = str(caught.value)
    assert "optimizer.gradient_checkpointing=true" in said
    assert "optimizer.batch_size=1 with optimizer.gradient_accumulation=2" in said


TRACKIO = """
import json, pathlib
class Run:
    def __init__(self, *facts): self.lines = [*facts]; print("Hello!")
    def log(self, values, step=None): self.lines.append([step, sorted(values)])
    def finish(self): pathlib.Path("tracked.json").write_text(json.dumps(self.lines)); print("Bye!")
def init(project, name, resume): return Run(project, name, resume)
"""


@pytest.mark.slow
def test_a_tracker_is_told_what_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on is the same run there; what a tracker prints is no result."""
    (tmp_path / "trackio.py").write_text(TRACKIO)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = ["gradient_norm", "instance_loss", "lr", "prior_loss", "seconds"]
    for steps, resume, at in ((4, "never", [2, 4]), (6, "allow", [6])):
        more = {"optimizer": {"steps": steps}, "checkpoint": {"every": 2}}
        train(recipe(tracking="trackio", **more), tmp_path / "run", reporter=QUIET)
        told = json.loads((tmp_path / "tracked.json").read_text())
        assert told == ["cat", "run", resume, *([step, names] for step in at)]
    assert capsys.readouterr().out == ""


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


@pytest.mark.slow
def test_a_snapshot_is_what_the_run_would_have_ended_with(tmp_path: Path) -> None:
    shorter = train(with_average(2), tmp_path / "shorter", reporter=QUIET)
    longer = train(with_average(3, snapshots=[3, 2, 9]), tmp_path / "longer", reporter=QUIET)
    assert content(longer.folder, 2) == shorter.weights.read_bytes()
    assert content(longer.folder, 3) == longer.weights.read_bytes() != content(longer.folder, 2)
    assert files(longer.folder / "snapshots") == [
        "step-000002/lora/pytorch_lora_weights.safetensors",
        "step-000003/lora/pytorch_lora_weights.safetensors",
    ]


@pytest.mark.slow
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
