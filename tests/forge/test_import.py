"""Captions of another dataset, rendered by the recipe's own model."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from hub_server import LoopbackHub
from shell import Shell
from small_runs import WriteRecipe, fingerprint, quietly, rows_of, write_captioned

from regforge.errors import RegforgeError
from regforge.hub import HubError
from regforge.journal import read
from regforge.recipe import Recipe, load_recipe
from regforge.records import Prompt

CAPTIONS = [
    "a cat asleep on a red sofa",
    "eine Katze auf dem Sofa, 🐈\n",
    None,
    "  a cat,\tby  a lake ",
    "a ginger cat looking out of a window",
    "two cats in a box",
    "a cat under a table",
]
TIDY = [" ".join(caption.split()) for caption in CAPTIONS if caption]


@pytest.fixture
def reg(tmp_path: Path) -> Path:
    """A folder of images and captions, as other people have them."""
    return write_captioned(tmp_path / "reg", CAPTIONS)


@pytest.fixture
def importing(write_recipe: WriteRecipe) -> Any:
    """Loads a recipe all of whose captions are imported, 6 of them, with other settings."""

    def load(dataset: object = "reg", sets: Any = None, **prompts: Any) -> Recipe:
        taken = dataset if isinstance(dataset, dict) else {"dataset": str(dataset)}
        given = {"count": 6, "sets": sets or {"import": 1}, "import": taken} | prompts
        # A limit cuts batches elsewhere, and on some CPUs that moves a pixel by a level or two.
        return load_recipe(write_recipe(prompts=given), ["render.batch_size=1"])

    return load


def prompts_of(folder: Path) -> list[Prompt]:
    return [Prompt.from_json(line) for line in (folder / "prompts.jsonl").open(encoding="utf-8")]


def imported_texts(folder: Path) -> list[str]:
    return [each.text for each in prompts_of(folder) if each.prompt_set == "import"]


def refusals(folder: Path) -> dict[str, str]:
    return {each["raw"]: each["reason"] for each in read(folder / "ledger.jsonl") if "raw" in each}


@pytest.mark.slow
@pytest.mark.usefixtures("reg")
def test_a_folders_captions_are_drawn_by_our_own_model(importing: Any, tmp_path: Path) -> None:
    done = quietly(importing(sets={"import": 1, "amplify": 1}, count=8), tmp_path / "run")
    rows = rows_of(done)
    taken = [row for row in rows if row.prompt_set == "import"]
    assert [row.text for row in taken] == TIDY[:4]
    for row in taken:
        assert (row.width, row.height, row.model) == (96, 96, "embedded/tinyworld")
        assert set(row.slots.values()) == {None}
        assert (row.template, row.language_model, row.reference) == ("", None, None)
    made = [row for row in rows if row.prompt_set == "amplify"]
    assert len(made) == 4
    assert all(row.slots["color"] for row in made)
    assert set(fingerprint(done.folder)) > {"imported.jsonl", "prompts.jsonl"}
    folder, cache = str(done.dataset_folder), str(tmp_path / "hf")
    loaded = datasets.load_dataset(folder, split="train", cache_dir=cache)
    assert loaded[0]["text"] in {row.text for row in rows}
    published = (done.dataset_folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "dataset: reg" in published
    assert str(tmp_path) not in published


@pytest.mark.slow
def test_a_runs_slots_come_along(write_recipe: WriteRecipe, importing: Any, tmp_path: Path) -> None:
    first = {"count": 4, "sets": {"amplify": 1}}
    before = rows_of(quietly(load_recipe(write_recipe(prompts=first)), tmp_path / "one"))
    # Of the slots that are asked for here, the first run has two. Nobody is asked for the third.
    slots = ["color", "style", "mood"]
    done = quietly(importing(tmp_path / "one", slots=slots, count=3), tmp_path / "two")
    for row, source in zip(rows_of(done), before, strict=False):
        assert row.text == source.text
        known = {name: source.slots[name] for name in ("color", "style")}
        assert row.slots == known | {"mood": None}
        assert row.image_digest != source.image_digest, "other seeds, so other images"
    assert done.cost == 0
    assert json.loads((done.folder / "vocabulary.json").read_text())["slots"] == {}
    assert not any(e["event"] == "llm_call" for e in read(done.folder / "log.jsonl"))


def test_what_may_not_be_said_stands_in_the_ledger(
    importing: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import regforge

    long = "a cat " + "beside a very large old house " * 15
    write_captioned(tmp_path / "reg", ["a photo of SKS cat", "a cat", "A cat.", long, "a kitten"])
    regforge.run(importing(count=2), out=tmp_path / "run", until="prompts")
    assert imported_texts(tmp_path / "run") == ["a cat", "a kitten"]
    found = refusals(tmp_path / "run")
    assert found["a photo of SKS cat"] == "names the identifier"
    assert found["A cat."] == "was said before"
    assert found[long.strip()].endswith("tokens")
    assert "class noun" not in capsys.readouterr().err


def test_a_person_is_told_what_is_odd_about_a_dataset(
    importing: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import regforge

    write_captioned(tmp_path / "reg", ["a dog", "a horse", None, "a cat"])
    regforge.run(importing(count=3), out=tmp_path / "run", until="prompts")
    said = capsys.readouterr().err
    assert "only 1 of 3 captions of reg name the class noun, 'cat'" in said
    assert "1 of 4 images have no caption" in said


@pytest.mark.slow
@pytest.mark.usefixtures("reg")
def test_too_few_captions_are_an_error_and_nothing_is_lost(importing: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    drawn = rows_of(quietly(importing(count=2), out))
    with pytest.raises(RegforgeError, match="no more after 6 captions of reg"):
        quietly(importing(count=9), out)
    # Whoever adds captions goes on with what is there.
    write_captioned(tmp_path / "reg", [*CAPTIONS, *(f"a cat, take {n}" for n in range(3))])
    (out / "imported.jsonl").unlink()
    assert len(quietly(importing(count=9), out, until="prompts").captions(9)) == 9
    assert rows_of(quietly(importing(count=9), out, limit=3))[:2] == drawn


@pytest.mark.slow
@pytest.mark.usefixtures("reg")
def test_a_run_goes_on_without_the_dataset(importing: Any, reg: Path, tmp_path: Path) -> None:
    settings = {"sets": {"import": 2, "amplify": 1}, "count": 4}
    whole = quietly(importing(**settings), tmp_path / "whole", until="images")
    quietly(importing(**settings), tmp_path / "run", limit=2, until="images")
    shutil.rmtree(reg)
    again = quietly(importing("./reg", **settings), tmp_path / "run", until="images")
    assert fingerprint(again.folder) == fingerprint(whole.folder)


@pytest.mark.usefixtures("reg")
def test_changes_there_count_for_a_fresh_run_only(
    importing: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import regforge

    recipe, out = importing(count=3), tmp_path / "run"
    quietly(recipe, out, until="prompts", limit=2)
    (tmp_path / "reg/000.txt").write_text("a cat in the snow")
    quietly(recipe, out, until="prompts")
    assert imported_texts(out) == TIDY[:3]
    quietly(recipe, out, until="prompts", fresh=True)
    assert imported_texts(out) == ["a cat in the snow", *TIDY[1:3]]
    # Another folder of that name is no other recipe, but a person is told.
    write_captioned(tmp_path / "far/reg", CAPTIONS)
    moved = importing("far/reg", count=3)
    regforge.run(moved, out=out, until="prompts")
    assert f"those of {tmp_path}/reg still" in capsys.readouterr().err
    assert imported_texts(out)[0] == "a cat in the snow"


@pytest.mark.slow
@pytest.mark.usefixtures("reg")
def test_edited_captions_are_used(importing: Any, tmp_path: Path) -> None:
    recipe, out = importing(count=2), tmp_path / "run"
    before = rows_of(quietly(recipe, out))
    path = out / "imported.jsonl"
    path.write_text(path.read_text("utf-8").replace("red sofa", "blue sofa"), encoding="utf-8")
    after = rows_of(quietly(recipe, out))
    assert [row.text for row in after] == ["a cat asleep on a blue sofa", TIDY[1]]
    assert after[0].image_digest != before[0].image_digest
    assert after[1] == before[1]


@pytest.mark.parametrize("dataset", ["./nowhere", "empty", "recipe.yaml"])
def test_what_is_no_dataset(dataset: str, importing: Any, tmp_path: Path, shell: Shell) -> None:
    (tmp_path / "empty").mkdir()
    recipe = importing(dataset)
    with pytest.raises(RegforgeError) as caught:
        quietly(recipe, tmp_path / "run")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()
    assert shell("check", tmp_path / "recipe.yaml") == 2
    assert str(tmp_path / dataset) in shell.err


def test_no_fresh_start_without_its_captions(importing: Any, reg: Path, tmp_path: Path) -> None:
    recipe, out = importing(count=2), tmp_path / "run"
    before = fingerprint(quietly(recipe, out, until="prompts").folder)
    shutil.rmtree(reg)
    with pytest.raises(RegforgeError, match="reg"):
        quietly(recipe, out, fresh=True)
    assert fingerprint(out) == before


@pytest.mark.usefixtures("reg")
def test_check_shows_captions_of_a_folder(importing: Any, shell: Shell, tmp_path: Path) -> None:
    importing()
    there = sorted(tmp_path.rglob("*"))
    assert shell("check", "recipe.yaml") == 0, shell.err
    assert f"import           captions of {tmp_path}/reg" in shell.out
    samples = shell.out.partition("Sample captions:\n")[2].splitlines()[:5]
    assert [line.strip() for line in samples] == TIDY[:5]
    assert "slots" not in shell.out
    assert sorted(tmp_path.rglob("*")) == there
    assert shell("check", "recipe.yaml", "--json") == 0
    assert json.loads(shell.out)["imported"] == f"captions of {tmp_path}/reg"


def test_check_of_a_large_folder_reads_a_few(importing: Any, shell: Shell, tmp_path: Path) -> None:
    write_captioned(tmp_path / "reg", ["a cat"] * 250)  # most datasets of class images are such
    importing()
    assert shell("check", "recipe.yaml") == 0, shell.err
    samples = shell.out.partition("Sample captions:\n")[2].splitlines()[:5]
    assert [line.strip() for line in samples][:2] == ["a cat", "<imported caption 1>"]


def test_check_asks_no_hub(importing: Any, shell: Shell, hub: LoopbackHub) -> None:
    importing("me/cats@v1", sets={"import": 1, "amplify": 1})
    assert shell("check", "recipe.yaml") == 0, shell.err
    assert "captions of me/cats@v1 on the Hub, which the run will read" in shell.out
    assert "<imported caption 1>" in shell.out
    assert hub.requests == []


def put(hub: LoopbackHub, folder: Path, **options: Any) -> str:
    files = {each.name: each.read_bytes() for each in sorted(folder.iterdir())}
    return hub.put("me/cats", files, **options)


def test_a_dataset_of_the_hub_is_read_once_at_its_revision(
    hub: LoopbackHub, importing: Any, reg: Path, tmp_path: Path
) -> None:
    commit = put(hub, reg)
    hub.tag("me/cats", "v1")
    (reg / "000.txt").write_text("another caption")
    put(hub, reg)
    recipe, out = importing({"dataset": "me/cats", "revision": "v1"}, count=5), tmp_path / "run"
    quietly(recipe, out, until="prompts", limit=3)
    assert imported_texts(out) == TIDY[:3]
    head = json.loads((out / "imported.jsonl").read_text("utf-8").splitlines()[0])
    assert head == {"format": 1, "dataset": "me/cats", "revision": commit}
    hub.fail(".*", 500, times=1000)
    asked = len(hub.requests)
    quietly(recipe, out, until="prompts")
    assert imported_texts(out) == TIDY[:5]
    assert len(hub.requests) == asked


def test_a_hub_address_is_on_the_hub_whatever_lies_in_the_current_directory(
    hub: LoopbackHub, importing: Any, reg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, reg)
    write_captioned(tmp_path / "elsewhere/me/cats", ["a dog"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    quietly(importing("me/cats", count=2), tmp_path / "run", until="prompts")
    assert imported_texts(tmp_path / "run") == TIDY[:2]


def test_nothing_is_half_read(hub: LoopbackHub, importing: Any, reg: Path, tmp_path: Path) -> None:
    put(hub, reg)
    recipe, out = importing("me/cats"), tmp_path / "run"
    hub.fail("GET .*/004.txt", "cut", times=1000)
    with pytest.raises(HubError):
        quietly(recipe, out, until="prompts")
    assert not (out / "imported.jsonl").exists()
    hub.heal()
    quietly(recipe, out, until="prompts")
    assert imported_texts(out) == TIDY


def test_offline_a_copy_will_do_and_without_one_it_is_said(
    hub: LoopbackHub, importing: Any, reg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, snapshot_download

    put(hub, reg)
    recipe = importing("me/cats")
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError) as caught:
        quietly(recipe, tmp_path / "run", until="prompts")
    (sentence,) = caught.value.args[0].splitlines()
    assert "me/cats" in sentence
    assert "HF_HUB_OFFLINE" in sentence
    assert not (tmp_path / "run").exists()
    assert len(hub.requests) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    snapshot_download("me/cats", repo_type="dataset")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    quietly(recipe, tmp_path / "run", until="prompts")
    assert imported_texts(tmp_path / "run") == TIDY


def test_a_gated_dataset(hub: LoopbackHub, importing: Any, reg: Path, tmp_path: Path) -> None:
    put(hub, reg, gated=True)
    with pytest.raises(HubError, match="me/cats is gated"):
        quietly(importing("me/cats"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("reg")
def test_a_missing_dataset_is_said_once(hub: LoopbackHub, importing: Any, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="no dataset me/dogs") as caught:
        quietly(importing("me/dogs"), tmp_path / "run")
    assert str(caught.value).count("Nor is there a folder") == 1
    assert len(hub.requests) == 1
