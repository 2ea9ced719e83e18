"""The paper's experiment: what it declares, and a small one from start to end."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import grid
import run

PAPER = Path(__file__).parents[2] / "examples" / "paper"
FILES = sorted(
    path
    for path in PAPER.glob("*.yaml")
    if {"subjects", "extends"} & set(yaml.safe_load(path.open()))
)


def prompts(name):
    """The prompts of a file, by group."""
    return {
        group: texts
        for by_group in yaml.safe_load((PAPER / name).open())["prompts"].values()
        for group, texts in by_group.items()
    }


def place_of(prompt):
    """What follows the subject: 'in a city'."""
    return re.sub(r"^.*\{\}", "", prompt).strip()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_main_grid_is_every_set_with_every_subject_and_seed(path):
    experiment = grid.read(path)
    cells = grid.cells(experiment)
    main = {
        (c.subject, c.seed, c.regularization and c.regularization.arm)
        for c in cells
        if c.study == "main"
    }
    assert len(main) == len(experiment.subjects) * len(experiment.seeds) * len(experiment.arms)
    assert len(experiment.subjects) >= 4
    assert len(experiment.seeds) >= 3
    keys = [cell.key for cell in cells]
    assert len(set(keys)) == len(keys)
    for file in (experiment.training, experiment.regularization):
        assert file.is_file()


def test_a_run_that_two_studies_want_is_trained_once_and_asked_both():
    experiment = grid.read(PAPER / "experiment.yaml")
    last = list(experiment.arms)[-1]
    shared = [
        cell
        for cell in grid.cells(experiment)
        if cell.subject == "cat"
        and cell.seed == 0
        and cell.regularization == grid.RegularizationSet(last, "cat", experiment.images)
    ]
    assert len(shared) == 1
    asked = {Path(file).stem for file, _ in shared[0].prompts}
    assert asked == {"prompts", "rephrased", "motion"}


def test_no_photo_and_no_regularization_caption_shows_a_place_that_is_asked_for():
    asked = {place_of(text) for texts in prompts("prompts.yaml").values() for text in texts}
    assert len(asked) == 7
    recipe = yaml.safe_load((PAPER / "regularization.yaml").open())
    said = {value for slot in recipe["prompts"]["slots"] for value in slot["values"]}
    experiment = grid.read(PAPER / "experiment.yaml")
    captions = [
        path.read_text()
        for about in experiment.subjects.values()
        for path in about.images.glob("*.txt")
    ]
    assert captions
    assert not asked & said
    assert not [(a, c) for a in asked for c in captions if a in c]


def test_the_rephrased_prompts_are_the_same_questions():
    asked, again = prompts("prompts.yaml"), prompts("rephrased.yaml")
    assert {name: len(texts) for name, texts in asked.items()} == {
        name: len(texts) for name, texts in again.items()
    }
    for name, texts in asked.items():
        assert not set(texts) & set(again[name])


def test_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {PAPER / 'experiment.yaml'}\nseedz: [1]\n")
    with pytest.raises(grid.ExperimentError, match="seedz"):
        grid.read(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["experiment.yaml", "small.yaml"])
def test_every_set_has_enough_to_say(name, tmp_path):
    experiment = grid.read(PAPER / name).model_copy(update={"out": tmp_path})
    for each in grid.sets(grid.cells(experiment)):
        run.make_set(experiment, each, until="prompts")
        captions = (run.set_folder(experiment, each) / "prompts.jsonl").read_text().splitlines()
        assert len(captions) == each.images, each.key


@pytest.mark.slow
def test_a_small_experiment_runs_from_start_to_end_and_goes_on(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
        extends: {PAPER / "small.yaml"}
        out: out
        images: 4
        steps: 2
        points: [1]
        samples: 1
        class_samples: 1
        sampling_steps: 1
        seeds: [0]
        subjects: {{cat: {{images: {PAPER.parent / "subjects" / "cat"}, kind: living}}}}
        arms: {{none: null, against: {{against: 1}}}}
        studies: {{motion: {{prompts: {PAPER / "motion.yaml"}, points: [1], without: motion}}}}
        """
    )
    command = [sys.executable, str(PAPER / "run.py"), str(path), "--workers", "1"]
    subprocess.run([*command, "--until", "1"], check=True, capture_output=True, timeout=600)
    first = tmp_path / "out" / "cells" / "cat-none" / "seed-0"
    before = {file: file.stat().st_mtime_ns for file in first.rglob("*") if file.is_file()}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)

    assert "report.html" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in before} == before
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["set"] for row in rows} == {
        "base model",
        "none",
        "against 4",
        "against 4 without motion",
    }
    means = {(row["set"], row["prompts"], row["metric"]): row["mean"] for row in rows}
    assert means["none", "prompts", "both"] <= means["none", "prompts", "dino"]
    captions = (tmp_path / "out" / "sets" / "cat-against-4-no-motion" / "prompts.jsonl").read_text()
    assert not re.search("running|jumping|sleeping", captions)
    page = (tmp_path / "out" / "report.html").read_text()
    for image in re.findall(r'src="([^"]+)"', page):
        assert (tmp_path / "out" / image).is_file()

    experiment = grid.read(path)
    cell = grid.cells(experiment)[0]
    assert run.is_done(experiment, cell, None)
    for changed in ({"samples": 2}, {"sampling_steps": 2}):
        other = experiment.model_copy(update=changed)
        assert not run.is_done(other, cell, None)
