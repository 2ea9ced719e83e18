"""The package as Python users and notebooks meet it."""

import enum
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import regforge
from regforge.auditing.gathering import Check
from regforge.journal import Reporter
from regforge.recipe import RecipeError

QUIET = Reporter(quiet=True)


def small(repo: Path, **keys: Any) -> dict[str, Any]:
    """Four images of two steps, as a mapping that says only what it changes."""
    return {
        "extends": str(repo / "recipes" / "quickstart.yaml"),
        "name": "small",
        "prompts": {"count": 4, "slots": [{"name": "color", "values": ["red", "blue", "pink"]}]},
        "render": {"steps": 2},
        **keys,
    }


@pytest.fixture(scope="module")
def run(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> regforge.Run:
    out = tmp_path_factory.mktemp("door") / "run"
    return regforge.run(small(repo), out=out, reporter=QUIET)


def test_everything_is_found_by_completion_and_nothing_is_imported() -> None:
    code = "import sys, regforge; print([*dir(regforge)], len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout
    assert dir(regforge) == regforge.__all__
    for name in regforge.__all__:
        assert getattr(regforge, name) is not None
    with pytest.raises(AttributeError, match="paint"):
        _ = regforge.paint


def test_a_mapping_a_file_and_a_recipe_are_the_same(repo: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small(repo)), encoding="utf-8")
    plans = [
        regforge.check(recipe, out=tmp_path / "run").as_dict()
        for recipe in (small(repo), file, str(file), regforge.load_recipe(file))
    ]
    assert plans[1:] == plans[:1] * 3
    assert plans[0]["images"] == 4


def test_paths_in_a_mapping_start_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photos" / "1.png")
    monkeypatch.chdir(tmp_path)
    subject = {"class_noun": "cat", "kind": "living", "images": Path("photos")}
    recipe = regforge.load_recipe({"name": "here", "subject": subject})
    assert recipe.subject.images == tmp_path / "photos"


@pytest.mark.slow
def test_values_of_a_mapping_may_be_what_python_users_have(repo: Path, run: regforge.Run) -> None:
    import numpy as np

    class Names(enum.StrEnum):
        MINE = "mine"

    values = np.array(["red", "blue", "teal", "pink"])
    recipe = regforge.load_recipe(
        {
            "extends": run.folder / "recipe.yaml",
            "name": Names.MINE,
            "prompts": {"count": np.int64(3), "slots": ({"name": "color", "values": values},)},
            "render": {"guidance_scale": np.float32(2.5)},
        }
    )
    assert (recipe.name, recipe.prompts.count, recipe.render.guidance_scale) == ("mine", 3, 2.5)
    assert recipe.prompts.slots[0].values == ("red", "blue", "teal", "pink")
    dataset = {"dataset": run}  # a result stands for its folder
    base = str(repo / "recipes" / "train-quickstart.yaml")
    trained = regforge.load_training_recipe({"extends": base, "regularization": dataset})
    assert str(trained.regularization.dataset) == str(run.folder)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"prompts": {"conut": 4}}, "prompts.conut"),
        ({"prompts": {"count": object()}}, ""),
        ({"prompts": {"count": 10**5000}}, ""),
        ({"subject": {"class_noun": "cat", "images": "nowhere"}}, "subject.images"),
        ({"extends": "nowhere.yaml"}, "extends"),
    ],
)
def test_what_is_wrong_in_a_mapping_is_named(repo: Path, wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError) as refused:
        regforge.check(small(repo, **wrong))
    assert key in [problem.key for problem in refused.value.problems]


def test_a_run_is_a_dataset_a_frame_a_folder_and_an_image_in_a_notebook(
    run: regforge.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    rows, frame = run.dataset(), run.to_pandas()
    assert (len(rows), rows[0]["image"].size) == (4, (96, 96))
    assert frame["text"].tolist() == rows["text"]
    assert "image" not in frame
    assert (Path(run) / "dataset" / "README.md").is_file()
    page = run._repr_html_()
    assert 'src="data:image/webp;base64,' in page
    assert str(run.report) in page.replace("\n", "")


def test_an_audit_is_a_table_of_checks(run: regforge.Run) -> None:
    audit = regforge.audit(run, reporter=QUIET)
    names = [check.name for check in audit.checks]
    assert audit.to_pandas()["check"].tolist() == audit.dataset()["check"] == names
    assert all(f"<td>{name}</td>" in audit._repr_html_() for name in names)


def test_what_strangers_wrote_is_text_in_a_notebook() -> None:
    check = Check("captions", "bad", "<script>alert(1)</script>", examples=["<b>"])
    assert "<script" not in regforge.Audit("<i>", 1, [check])._repr_html_()


def test_a_run_without_a_dataset_says_so(repo: Path, tmp_path: Path) -> None:
    made = regforge.run(small(repo), out=tmp_path / "run", until="prompts", reporter=QUIET)
    with pytest.raises(regforge.RegforgeError, match="no dataset"):
        made.dataset()
    assert "<img" not in made._repr_html_()


def test_verbs_stay_verbs_once_they_were_used(run: regforge.Run, tmp_path: Path) -> None:
    """A package of the same name would take their places when it is imported."""
    made = regforge.export(run, to="imagefolder", out=tmp_path / "out")
    assert (Path(made.out) / "export.json").is_file()
    with pytest.raises(regforge.RegforgeError):
        regforge.publish(run, repo_id="no name")
    assert all(callable(getattr(regforge, name)) for name in ("audit", "export", "publish"))


FEWER = {
    '"count": 24': '"count": 8',
    '"steps": 60': '"steps": 4',
    "count=4, ": "count=1, ",
    "samples=2, class_samples=4": "samples=1, class_samples=2",
    "limit=2": "limit=1, text_fidelity=False",
}
"""What readers wait a few minutes for."""


@pytest.mark.slow
def test_the_notebook_runs_and_shows_images(repo: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    (tmp_path / "recipes").symlink_to(repo / "recipes")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "subjects").symlink_to(repo / "examples" / "subjects")
    notebook = nbformat.read(repo / "examples" / "notebook.ipynb", as_version=4)
    kept = [cell.get("outputs") for cell in notebook.cells]
    for much, little in FEWER.items():
        (cell,) = (each for each in notebook.cells if much in each.source)
        cell.source = cell.source.replace(much, little)
    here = {"metadata": {"path": tmp_path / "examples"}}
    NotebookClient(notebook, timeout=600, resources=here).execute()
    shown = json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert shown.count("data:image/") == json.dumps(kept).count("data:image/") >= 3
    assert shown.count("image/png") == json.dumps(kept).count("image/png") >= 1
