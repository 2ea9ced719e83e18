"""What becomes of a run whose images people reject, and whose captions they change."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shell import Shell
from small_runs import quietly, rows_of, write_small

from regforge.dataset.decisions import FILE
from regforge.dataset.sources import open_dataset
from regforge.forge import write_report
from regforge.recipe import Recipe, load_recipe
from regforge.records import ImageRow, image_seed
from regforge.runs import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    """A run of six cats; nobody writes into it."""
    top = tmp_path_factory.mktemp("made")
    recipe = write_small(
        top / "recipe.yaml", repo, prompts={"count": 6}, subject={"identifier": "sks"}
    )
    quietly(load_recipe(recipe), top / "run")
    return top


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_once / "run", tmp_path / "run")
    return tmp_path / "run"


def recipe_of(made: Path) -> Recipe:
    return load_recipe(made / "recipe.yaml")


def decide(shell: Shell, made: Path, *decisions: dict[str, Any]) -> int:
    file = made.parent / "decisions.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in decisions))
    return shell("review", made, "--apply", file)


def rows_in(made: Path) -> list[ImageRow]:
    return rows_of(quietly(recipe_of(made), made))


def test_rejected_images_are_replaced_and_the_others_stay(made: Path, shell: Shell) -> None:
    before = rows_in(made)
    first, second = before[1], before[4]
    reject = {"do": "reject", "id": first.id, "reason": "two heads"}
    assert decide(shell, made, reject, {"do": "reject", "id": second.id}) == 0
    for folder in (made, made / "dataset"):
        assert shell("review", folder, "--json") == 0
        assert json.loads(shell.out)["rejected"] == 2
    # Nobody is given them any more, even before they are replaced.
    dataset = open_dataset(made)
    assert [each.id for each in dataset.examples(images=False)] == [
        row.id for row in before if row not in (first, second)
    ]
    assert any("review.jsonl" in note for note in dataset.notes)
    assert shell("publish", made, "--repo-id", "me/cats") == 2
    assert "regforge run run/recipe.yaml --out run" in shell.err
    assert "2 decisions not carried out yet" in write_report(made).read_text()

    after = rows_in(made)
    assert [row.id for row in after] == [row.id for row in before]
    for old, new in zip(before, after, strict=True):
        if old in (first, second):
            assert new.seed == image_seed(old.recipe_digest, old.index, 1)
            assert new.image != old.image
        else:
            assert new == old
    kept = made / "reviewed" / f"{first.id}.{first.image_digest[:8]}.webp"
    assert kept.read_bytes() == first.image
    assert "rejected by eye: two heads" in write_report(made).read_text()
    assert rows_in(made) == after

    # A second time, and after the shards were lost: never one of those again.
    third = after[1]
    assert decide(shell, made, {"do": "reject", "id": third.id}) == 0
    again = rows_in(made)
    assert again[1].seed == image_seed(third.recipe_digest, third.index, 2)
    shutil.rmtree(made / "shards")
    assert [row.seed for row in rows_in(made)] == [row.seed for row in again]


def test_a_caption_is_drawn_anew_or_corrected(made: Path, shell: Shell) -> None:
    before = rows_in(made)
    redrawn, corrected = before[2], before[3]
    text = "a photo of a green cat in a forest"
    wanted = [
        {"do": "caption", "id": redrawn.id, "text": text, "redraw": True},
        {"do": "caption", "id": corrected.id, "text": "a photo of a cat"},
    ]
    assert decide(shell, made, *wanted) == 0
    captions = {each.id: each.text for each in open_dataset(made).examples(images=False)}
    assert captions[corrected.id] == "a photo of a cat"
    assert redrawn.id not in captions
    after = rows_in(made)
    assert [row for row in after if row.id not in (redrawn.id, corrected.id)] == [
        row for row in before if row not in (redrawn, corrected)
    ]
    assert (after[2].text, after[2].seed) == (text, redrawn.seed)
    assert after[2].image != redrawn.image
    assert after[2].slots["color"] is None
    slots = {name: said if said == "a photo of" else None for name, said in corrected.slots.items()}
    assert after[3] == replace(corrected, text="a photo of a cat", slots=slots)
    # The caption that it had is none to draw an image of, and calls off another one.
    other = {"do": "caption", "id": before[0].id, "text": "a photo of a red cat", "redraw": True}
    assert decide(shell, made, other) == 0
    assert decide(shell, made, {**other, "text": before[0].text}) == 0
    assert before[0].id in {each.id for each in open_dataset(made).examples(images=False)}
    # Taken back, the captions are the prompts' again, and so is the image, drawn alone this time.
    with (made / FILE).open("a") as file:
        file.write(json.dumps({"do": "undo", "undoes": [1, 2]}) + "\n")
    back = rows_in(made)
    assert (back[2].text, back[2].seed) == (redrawn.text, redrawn.seed)
    assert [*back[:2], *back[3:]] == [*before[:2], *before[3:]]
    assert decide(shell, made, {"do": "caption", "id": redrawn.id, "text": "a sks cat"}) == 2
    assert "identifier" in shell.err


def test_what_people_wrote_is_read_with_care(made: Path, shell: Shell) -> None:
    assert decide(shell, made, {"do": "reject", "id": "nowhere-000001"}) == 2
    assert not (made / FILE).exists()
    (made / FILE).write_text('{"do": "keep", "id": "a"}\n{"do": "burn", "id": "a"}\n')
    assert shell("review", made) == 2
    assert "decision 2" in shell.err
    (made / FILE).write_text('{"do": "keep", "id": "a"}\n{"do": "rej')  # cut off by a kill
    first = rows_in(made)[0]
    assert decide(shell, made, {"do": "reject", "id": first.id}) == 0
    lines = [json.loads(line) for line in (made / FILE).read_text().splitlines()]
    assert [line["do"] for line in lines] == ["keep", "reject"]
    assert lines[1]["image"] == hashlib.sha256(first.image).hexdigest()
    assert (lines[1]["n"], lines[1]["seed"], lines[1]["was"]) == (2, first.seed, first.text)
    out = made.parent / "out.jsonl"
    assert shell("review", made, "--export", out) == 0
    assert json.loads(out.read_text().splitlines()[1])["id"] == first.id
    assert shell("review", made, "--export", RunFolder(made).prompts) == 2


def test_replacements_count_when_the_run_goes_on(made: Path, shell: Shell) -> None:
    """More images are asked for afterwards, and one was rejected that nobody had replaced."""
    before = rows_in(made)
    assert decide(shell, made, {"do": "reject", "id": before[5].id}) == 0
    recipe = load_recipe(made / "recipe.yaml", ["prompts.count=8"])
    after = rows_of(quietly(recipe, made))
    assert [row.index for row in after] == list(range(8))
    assert after[:5] == before[:5]
    assert after[5].seed != before[5].seed
