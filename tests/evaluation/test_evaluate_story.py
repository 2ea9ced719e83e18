"""Slow: two trained runs measured from end to end, interrupted, gone on with, and made larger."""

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trained_models
from forked import Forked
from PIL import Image

from regforge.evaluation import Evaluation, EvaluationSettings, drawing, evaluate, references
from regforge.journal import Reporter, Task
from regforge.recipe import TrainingRecipe
from regforge.training import train

pytestmark = pytest.mark.slow

QUICK = EvaluationSettings(samples=2, class_samples=3, limit=3, steps=2, device="cpu", batch_size=4)


@pytest.fixture(scope="module", autouse=True)
def equal_images_are_read_once() -> Iterator[None]:
    """Reading writing takes most of the time, and finds the same in the same pixels."""
    read, found = references._read, {}

    def remembered(image: Image.Image) -> list[tuple[str, float]]:
        pixels = (image.mode, image.size, image.tobytes())
        if pixels not in found:
            found[pixels] = read(image)
        return found[pixels]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(references, "_read", remembered)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs on the cat, of which one has snapshots; a few steps are enough to differ."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("one", {"snapshots": (2, 3)}), ("two", {})):
        content: dict[str, Any] = {
            "name": name,
            "subject": {
                "images": trained_models.SUBJECTS / "cat",
                "identifier": "sks",
                "class_noun": "cat",
            },
            "method": {"rank": 4},
            "data": {"crop": "center"},
            "optimizer": {"steps": 4, "lr": 3e-3 if name == "one" else 1e-3},
            "validation": {"every": 0, "steps": 1, "guidance_scale": 4.0},
            "checkpoint": {"every": 100, **more},
            "device": "cpu",
        }
        recipe = TrainingRecipe.model_validate(content)
        train(recipe, folder / name, reporter=Reporter(quiet=True))
    return folder / "one", folder / "two"


@pytest.fixture(scope="module")
def whole(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """What comes out if nobody disturbs it."""
    return measured(runs, tmp_path_factory.mktemp("whole") / "out")


def measured(models: Sequence[Path], out: Path, settings: EvaluationSettings = QUICK) -> Evaluation:
    return evaluate(models, settings, out=out, reporter=Reporter(stream=io.StringIO()))


class Interrupting(Reporter):
    """Presses Ctrl-C when so many images of a model are done."""

    def __init__(self, model: str, at: int) -> None:
        super().__init__(stream=io.StringIO())
        self._model, self._at = model, at

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "", done: int = 0) -> Iterator[Task]:
        with super().task(name, total, unit, done) as task:
            advance = task.advance

            def advance_and_stop(count: int = 1) -> None:
                advance(count)
                if name == self._model and task.done == self._at:
                    raise KeyboardInterrupt

            task.advance = advance_and_stop  # type: ignore[method-assign]
            yield task


def images(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*.png")
        if path.parent != folder
    }


def test_it_measures_and_shows_all_models(whole: Evaluation) -> None:
    names = [result.model.name for result in whole.results]
    assert names == ["base model", "one", "two"]
    for result in whole.results:
        assert len(result.images) == (3 + 3) * 2 + 3
        assert {"dino", "clip_i", "clip_t", "matched", "pres", "div"} <= result.scores.keys()
        assert result.scores["dino"].count == 12
        assert result.scores["pres"].count == 3
        assert result.scores["class_closeness"].count == 3
        assert (result.scores.keys() >= {"lift"}) is (result.model.name != "base model")
        for each in result.images:
            with Image.open(whole.folder / each.file) as image:
                assert image.size == (96, 96)
    base = whole.results[0].scores
    level = [base[name].mean for name in ("class_closeness", "class_diversity", "pres_over_base")]
    assert level == pytest.approx([1, 1, 0])
    assert whole.results[1].scores["lift"].count == 3 + 3
    one, two = (result.scores["dino"].mean for result in whole.results[1:])
    assert one != two
    assert whole.ceiling["sks cat"]["dino"].mean > max(one, two)
    assert {(each.first, each.second) for each in whole.comparisons} == {
        ("base model", "one"),
        ("base model", "two"),
        ("one", "two"),
    }
    assert not whole.held_out
    assert any("only the first 3 prompts" in note for note in whole.notes)
    assert any("DreamBench draws 4" in note for note in whole.notes)
    for name in ("report.html", "evaluation.json", "references/00/00.webp"):
        assert (whole.folder / name).is_file()


def test_interrupted_and_gone_on_with_ends_with_the_same_bytes(
    runs: tuple[Path, Path], whole: Evaluation, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    times: dict[str, int] = {}

    def assert_that_nothing_was_drawn_twice() -> None:
        before = dict(times)
        times.update((name, (out / name).stat().st_mtime_ns) for name in images(out))
        assert before.items() < times.items()

    for model, at in (("base model", 5), ("one", 15), ("two", 6)):
        with pytest.raises(KeyboardInterrupt):
            evaluate(runs, QUICK, out=out, reporter=Interrupting(model, at))
        assert_that_nothing_was_drawn_twice()
        assert not (out / "evaluation.json").exists()
    again = measured(runs, out)
    assert_that_nothing_was_drawn_twice()
    assert images(out) == images(whole.folder)
    one, other = ((each.folder / "evaluation.json").read_bytes() for each in (whole, again))
    assert one == other


def test_more_can_be_asked_for_and_new_weights_are_drawn_anew(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    copy = tmp_path / "copy"
    trained_models.run(copy)
    weights = Path("lora", trained_models.LORA)
    (copy / weights).write_bytes((runs[0] / weights).read_bytes())
    less = replace(QUICK, samples=1, with_base=False)
    measured([copy], out, less)
    before, more = images(out), replace(less, samples=2)
    larger = measured([copy, runs[1]], out, more)
    assert before.items() <= images(out).items()
    assert [len(result.images) for result in larger.results] == [15, 15]
    (copy / weights).write_bytes((runs[1] / weights).read_bytes())
    other = measured([copy, runs[1]], out, more)
    assert [each.scores for each in other.results[0].images] == [
        each.scores for each in other.results[1].images
    ]
    drawn = images(out)
    (tmp_path / "elsewhere").mkdir()
    moved = copy.rename(tmp_path / "elsewhere" / "copy")  # it is the same model there
    measured([moved, runs[1]], out, more)
    assert images(out) == drawn


def test_snapshots_are_models_of_their_own(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = measured(runs[:1], tmp_path, replace(QUICK, snapshots=True, limit=1))
    assert [result.model.steps for result in found.results] == [0, 2, 3, 4]
    assert any(note.startswith("Best steps of one: DINO after") for note in found.notes)
    assert "over training steps" in (tmp_path / "report.html").read_text()


def test_the_command_and_its_page(runs: tuple[Path, Path], tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for name in ("00.png", "01.png"):
        (others / name).write_bytes((trained_models.SUBJECTS / "owl" / name).read_bytes())
    numbers = ["--samples", "1", "--limit", "1", "--steps", "2", "--no-base", "--no-text"]
    words = ["evaluate", runs[0], *numbers, "--references", others, "--out", tmp_path / "out"]
    done = Forked(*words)
    assert done.wait() == 0, done.err
    assert "12 images of one model" in done.err
    assert "DINO" in done.out
    assert done.out.rstrip().endswith(str(tmp_path / "out" / "report.html"))
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["held_out"] is True
    refused = Forked(*words, "--seed", "1")
    assert refused.wait() == 2
    assert "seed 0, not 1" in refused.err
    assert "Traceback" not in refused.err
    assert os.listdir(tmp_path / "out" / "images")  # noqa: PTH208


@pytest.mark.timeout(600)
def test_workers_of_ray_draw_the_same(
    whole: Evaluation, runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    import torch

    # On a CPU, how many threads compute together shows in the last bit of some pixels.
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setattr(drawing.BaseModel, "load", None)  # nothing is drawn here
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    few = replace(QUICK, samples=1, class_samples=2, limit=1, text_fidelity=False, with_base=False)
    out, silent = tmp_path / "out", Reporter(stream=io.StringIO())
    try:
        evaluate(runs[:1], few, out=out, engine="ray", workers=1, reporter=silent)
    finally:
        ray.shutdown()
    assert images(out)
    assert images(out).items() <= images(whole.folder).items()
