"""The paper's experiment: what it declares, runs side by side, a small one from start to end."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

import grid
import run
from regforge.recipe import dataset_recipe_of, load_recipes

PAPER = Path(__file__).parents[2] / "examples" / "paper"
SUBJECTS = PAPER.parent / "subjects"
FILES = sorted(path for path in PAPER.glob("*.yaml") if "training" in yaml.safe_load(path.open()))


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
def test_all_arms_with_both_identifiers_on_every_subject_and_seed(path):
    experiment = grid.read(path)
    packs = grid.packs(experiment)
    runs = {(pack.arm, pack.identifier, *run) for pack in packs for run in pack.runs}
    assert len(runs) == sum(len(pack.runs) for pack in packs)
    for identifier in ("sks", "token"):
        of_it = [each for each in runs if each[1] == identifier]
        assert len(of_it) == len(experiment.arms) * len(experiment.subjects) * len(experiment.seeds)
    kinds = [about.kind for about in experiment.subjects.values()]
    assert len(kinds) >= 4
    assert kinds.count("living") >= 2
    assert len(experiment.seeds) >= 3
    first = {(pack.arm, pack.identifier) for pack in packs[: -(-len(packs) // 2)]}
    assert {experiment.compared.default, *experiment.compared.with_} <= first


def test_all_subjects_of_dreambench_have_a_dataset_and_a_training(tmp_path):
    paper, photos = tmp_path / "examples/paper", tmp_path / "dreambooth/dataset"
    shutil.copytree(PAPER, paper)
    for name in grid.read(paper / "sdxl.yaml").subjects:
        (photos / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(photos / name / "00.png")
    assert len(load_recipes(paper / "sdxl-regularization.yaml")) == 30
    (training,) = load_recipes(paper / "sdxl-training.yaml", (), ["red_cartoon"]).values()
    assert dataset_recipe_of(training).subject.class_noun == "cartoon"


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


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("seedz: [1]", "seedz"),
        ("arms: {naive: {dataset: nowhere}}", "nowhere"),
        ("identifiers: {sks: {is: sks}}", "token"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, line, named):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {PAPER / 'experiment.yaml'}\n{line}\n")
    with pytest.raises(grid.ExperimentError, match=named):
        grid.read(path)


@pytest.mark.slow
def test_every_dataset_has_enough_to_say_and_says_a_colour_as_often_as_it_should(tmp_path):
    import regforge

    experiment = grid.read(PAPER / "experiment.yaml")
    shares = {}
    for dataset in experiment.datasets:
        for subject in experiment.subjects:
            out = tmp_path / f"{subject}-{dataset}"
            recipe = grid.dataset_recipe(experiment, dataset, subject)
            regforge.run(recipe, out=out, until="prompts")
            rows = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
            images = len(rows) * recipe.render.images_per_prompt
            assert experiment.images <= images <= 1.15 * experiment.images, out.name
            shares[dataset] = sum(bool(row["slots"].get("color")) for row in rows) / len(rows)
    assert shares["structured"] == 1
    assert 0.4 <= shares["structured-half"] <= 0.6
    assert shares["naive"] == shares["naive-places"] == 0


# ------------------------------------------------------------------------------------- small ones


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The file of a very small experiment, and its datasets."""
    folder = tmp_path_factory.mktemp("paper")
    asked = {
        "prompts": {"both": {group: texts[:1] for group, texts in prompts("prompts.yaml").items()}},
        "class_prompts": yaml.safe_load((PAPER / "prompts.yaml").open())["class_prompts"],
    }
    (folder / "few.yaml").write_text(yaml.safe_dump(asked))
    path = folder / "tiny.yaml"
    path.write_text(
        f"""
        extends: {PAPER / "experiment.yaml"}
        out: out
        images: 4
        steps: 2
        points: [0.5, 1]
        seeds: [0]
        prompts: few.yaml
        class_samples: 2
        subjects:
          cat: {{images: {SUBJECTS / "cat"}, kind: living}}
          teapot: {{images: {SUBJECTS / "teapot"}, kind: object}}
        arms:
          none: {{}}
          naive: {{dataset: naive}}
          structured half: {{dataset: structured-half}}
          structured half, twins:
            dataset: structured-half
            set: [regularization.class_twins=0.5]
          drift: {{set: [regularization.drift_penalty=100]}}
        compared:
          default: [structured half, token]
          with: [[none, sks]]
          primary: [lift]
          at_least: {{closeness: 0.95}}
        overrides: [optimizer.precision=fp32]
        """
    )
    experiment = grid.read(path)
    for subject in experiment.subjects:
        for dataset in ("naive", "structured-half"):
            run.make_dataset(experiment, dataset, subject)
        run.measure_base(experiment, subject)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair",
    [("naive", "sks"), ("drift", "token"), ("structured half, twins", "token")],
    ids=", ".join,
)
def test_runs_side_by_side_learn_what_each_learns_alone(tiny, pair):
    from many import many_loop

    experiment = grid.read(tiny)
    runs = [("cat", 0), ("teapot", 0), ("cat", 1)]
    recipes = [grid.training_recipe(experiment, pair, *each) for each in runs]

    def learned(recipes):
        loop = many_loop(recipes)
        for step in range(3):
            loop.step(step)
        return {name: value.clone() for name, value in loop.state(3).weights.items()}

    def apart(number):
        """How far a run is from what was learned alone, relative to how far that went."""
        wide = [name for name in alone if "lora_B" in name]  # it begins with 0
        went = sum(float(alone[name].square().sum()) for name in wide)
        between = (float((together[n][number] - alone[n]).square().sum()) for n in wide)
        return (sum(between) / went) ** 0.5

    together = learned(recipes)
    assert ("text_encoder.new_token" in together) == (pair[1] == "token")
    for number, recipe in enumerate(recipes):
        alone = learned([recipe])  # regforge's own loop, layers and examples
        assert apart(number) < 2e-3  # float32's rounding, through Adam's division
        assert apart(number - 1) > 0.3


@pytest.mark.slow
def test_runs_that_were_stopped_go_on_to_the_same_scores(tiny, tmp_path, monkeypatch):
    experiment = grid.read(tiny)
    pack = next(p for p in grid.packs(experiment) if (p.arm, p.identifier) == ("naive", "token"))
    run.train_pack(experiment, pack)
    folder = grid.pack_folder(experiment, pack)
    files = [grid.scores_file(folder, step) for step in experiment.stops]
    whole = [file.read_bytes() for file in files]
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        file.name for file in files
    ]

    folder.rename(tmp_path / "whole")
    measure = run._measure

    def stopped(*arguments):
        if arguments[-1] == files[-1]:
            raise KeyboardInterrupt
        measure(*arguments)

    monkeypatch.setattr(run, "_measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.train_pack(experiment, pack)
    assert not grid.is_done(experiment, pack)
    begun = files[0].stat().st_mtime_ns
    monkeypatch.setattr(run, "_measure", measure)
    run.train_pack(experiment, pack)
    assert grid.is_done(experiment, pack)
    assert files[0].stat().st_mtime_ns == begun
    assert [file.read_bytes() for file in files] == whole


@pytest.mark.slow
def test_jobs_run_in_processes_of_their_own_and_one_that_fails_ends_no_other():
    jobs = [("fails", math.sqrt, (-1,)), ("runs", math.sqrt, (4,))]
    found = dict(run._in_processes(jobs, 1))
    assert (type(found["fails"]), found["runs"]) == (ValueError, None)


@pytest.mark.slow
def test_a_small_experiment_runs_from_start_to_end_and_goes_on(tiny, monkeypatch, capsys):
    def here(jobs, _):
        for key, function, arguments in jobs:
            yield key, function(*arguments)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["run.py", str(tiny), *words])
        run.main()

    monkeypatch.setattr(run, "_in_processes", here)
    command("--until", "1", "--only", "train")
    experiment = grid.read(tiny)
    packs = grid.packs(experiment)
    assert {(pack.arm, pack.identifier) for pack in packs[:2]} == {
        experiment.compared.default,
        *experiment.compared.with_,
    }
    assert [grid.is_done(experiment, pack) for pack in packs[:2]] == [True, False]
    before = {file: file.stat().st_mtime_ns for file in experiment.folder.rglob("step-*.json")}
    command("--until", "2")
    assert "results.md" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in before} == before
    rows = json.loads((experiment.out / "results.json").read_text())
    found = {(row["arm"], row["identifier"], row["step"], row["measure"]): row for row in rows}
    start = found["structured half", "token", 1, "closeness"]
    assert start["mean"] == pytest.approx(1, abs=0.3)  # one step: nearly the untouched model
    assert set(start["runs"]) == {"cat 0", "teapot 0"}
    assert found["none", "sks", 2, "shown"]["low"] <= found["none", "sks", 2, "shown"]["mean"]
    text = (experiment.out / "results.md").read_text()
    assert "| above none, sks | lift |" in text
    for figure in ("frontier.svg", "images.webp"):
        assert (experiment.out / "figures" / figure).stat().st_size > 1000
    alone = tiny.with_name("alone.yaml")  # a subject of its own, whose runs are not there
    alone.write_text(
        f"extends: {tiny.name}\nsubjects: {{owl: {{images: {SUBJECTS / 'owl'}, kind: living}}}}\n"
        "identifiers:\n  sks: {is: sks, arms: [none]}\n"
        "  token: {is: {new: <new>}, arms: [structured half]}\n"
    )
    command("--with", str(alone))
    assert "(3 subjects" in (experiment.out / "together.md").read_text()
    both = json.loads((experiment.out / "together.json").read_text())
    shared = (("none", "sks"), ("structured half", "token"))
    assert both == [row for row in rows if (row["arm"], row["identifier"]) in shared]
    other = experiment.model_copy(update={"class_samples": 3})
    assert not any(grid.is_done(other, pack) for pack in packs)
