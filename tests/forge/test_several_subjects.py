"""Slow: one command, a run for each subject, one folder to load them from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_server import LoopbackHub
from shell import Shell
from small_runs import write_small

from regforge.dataset.index import write_index
from regforge.dataset.sources import open_dataset
from regforge.dataset.sources.trees import CannotOpen

pytestmark = pytest.mark.slow


def test_a_run_for_each_subject(
    shell: Shell,
    repo: Path,
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    slots = [{"name": "color", "values": ["red", "blue", "green"]}]
    recipe = write_small(
        tmp_path / "recipe.yaml",
        repo,
        name="many",
        subject=None,
        subjects=[{"class_noun": "cat"}, {"class_noun": "teapot"}],
        prompts={"count": 3, "sets": {"amplify": 1}, "slots": slots},
        render={"steps": 1},
    )
    assert shell("check", recipe) == 0
    assert "6 images" in shell.out
    assert shell("review", recipe, "--json") == 2
    assert "cat and teapot" in shell.err
    assert shell("review", recipe, "--only", "teapot", "--json") == 0
    assert shell("run", recipe, "--only", "teapot", "--json") == 0
    assert [*json.loads(shell.out)] == ["teapot"]
    assert "config_name: teapot" in (tmp_path / "runs/many/README.md").read_text()
    alone = (tmp_path / "runs/many/teapot/dataset/README.md").read_bytes()

    (tmp_path / "runs/many/cat").mkdir()
    (tmp_path / "runs/many/README.md").replace(tmp_path / "runs/many/cat/mine.txt")
    assert shell("run", recipe) == 1
    assert "1 of 2 subjects failed: cat" in shell.err
    assert "config_name: teapot" in (tmp_path / "runs/many/README.md").read_text()
    (tmp_path / "runs/many/cat/mine.txt").unlink()
    assert shell("run", recipe) == 0
    assert (tmp_path / "runs/many/teapot/dataset/README.md").read_bytes() == alone

    (tmp_path / "runs/else/dataset").mkdir(parents=True)
    shutil.copytree("runs/many/cat", "runs/many/another")  # whose recipe is another's
    assert shell("publish", "runs/many", "--repo-id", "me/many", "--tag", "v1", "--public") == 0
    assert 'load_dataset("me/many", "cat", revision="v1", split="train")' in shell.out
    assert "6 images of 2 subjects" in shell.out
    assert shell("review", "runs/many", "--only", "cat", "--json") == 0
    before = len(hub.writes)
    assert shell("publish", "runs/many", "--repo-id", "me/many", "--json") == 0
    assert json.loads(shell.out)["changed"] is False
    assert hub.writes[before:] == []
    assert shell("publish", "runs/many/cat", "--repo-id", "me/many") == 2  # not in place of all
    assert hub.writes[before:] == []
    card = hub.files("me/many")["cat/dataset/README.md"].decode()
    assert 'load_dataset("me/many", "cat", split="train")' in card

    for name in ("cat", "teapot"):
        for where in ("runs/many", "me/many"):
            rows = datasets.load_dataset(where, name, split="train")
            assert set(rows["class_noun"]) == {name}
            assert len(rows) == 3
        dataset = open_dataset(f"me/many:{name}@v1")
        assert {each.text for each in dataset.examples(images=False)} == set(rows["text"])
        assert dataset.license == "cc-by-4.0"
    for where in ("runs/many", "me/many", "me/many:dog"):
        with pytest.raises(CannotOpen, match="cat and teapot"):
            open_dataset(where)
    card = tmp_path / "runs/many/README.md"
    card.write_text(card.read_text() + "\nMy own words.\n")
    (tmp_path / "runs/many/other/dataset").mkdir(parents=True)
    (tmp_path / "runs/many/other/dataset/README.md").write_text("no card of ours")
    assert write_index(card.parent) == card
    assert datasets.get_dataset_config_names("runs/many") == ["cat", "teapot"]
    assert card.read_text().endswith("My own words.\n")
