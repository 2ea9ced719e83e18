"""`regforge train` and what people can get wrong about it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shell import Shell

from regforge.files import recipes_folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / f"photos/{number}.png").touch()
    path = tmp_path / "cat.yaml"
    path.write_text("name: cat\nsubject: {images: photos, class_noun: cat}\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.yaml"], "none.yaml  there is no such file"),
        (["cat.yaml", "--set", "optimizer.stesp=5"], "unknown key, did you mean 'steps'?"),
        (["cat.yaml", "--set", "subject.images=none"], "subject.images: there is no folder"),
        (["cat.yaml", "--set", "subject.images=."], "subject.images: there are no photos in"),
        (["cat.yaml", "--set", "regularization.dataset=../none"], "there is no /"),
        (["quickstart.yaml"], "regforge comes with one of that name"),
        (["photos"], "is a folder, not a recipe"),
    ],
)
def test_bad_input_ends_with_2(recipe: Path, shell: Shell, arguments: list[str], said: str) -> None:
    assert shell("train", *arguments) == 2
    assert said in shell.err
    assert shell.out == ""
    assert not (recipe.parent / "runs").exists()


def test_recipes_go_to_their_commands(recipe: Path, shell: Shell) -> None:
    assert shell("train", recipes_folder() / "quickstart.yaml") == 2
    assert "is a dataset recipe, for `regforge run`; here a training recipe is needed" in shell.err
    recipe.write_text(recipe.read_text() + "optimizer: {steps: 5}\n")
    assert shell("run", "cat.yaml") == 2
    assert "is a training recipe, for `regforge train`" in shell.err


def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Take the place of the training itself; returns what it is asked."""
    from regforge import training

    asked: list[Any] = []

    def train(recipe: Any, out: Any = None, *, fresh: bool = False, reporter: Any = None) -> Any:
        asked.append(SimpleNamespace(recipe=recipe, out=out, fresh=fresh))
        return SimpleNamespace(
            folder=Path(out).absolute(),
            as_dict=lambda: {"weights": "w"},
            as_text=lambda: "weights  w",
        )

    monkeypatch.setattr(training, "train", train)
    return asked


def test_the_command_tells_all(recipe: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = trained(monkeypatch)
    assert (shell("train", "cat.yaml"), shell.err) == (0, "")
    assert shell.out.startswith("weights  w\ncard     runs/cat/README.md ")
    assert "\n  regforge evaluate runs/cat " in shell.out
    shell("train", "cat.yaml", *"--out there --fresh --set optimizer.steps=5 --json".split())
    assert json.loads(shell.out) == {"weights": "w"}
    assert [(each.out, each.fresh) for each in asked] == [
        (Path("runs/cat"), False),
        (Path("there"), True),
    ]
    assert [each.recipe.optimizer.steps for each in asked] == [2000, 5]


def test_what_is_probably_not_meant_is_said_before_and_by_one_process(
    recipe: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = trained(monkeypatch)
    arguments = ["train", "cat.yaml", "--set", "subject.identifier=dog"]
    assert shell(*arguments) == 0
    assert shell.err.startswith("warning: subject.identifier: 'dog' is an ordinary word")
    shell(*arguments, "--quiet")
    assert shell.err == ""
    monkeypatch.setenv("RANK", "1")
    assert (shell(*arguments), shell.out + shell.err) == (0, "")
    assert len(asked) == 3
