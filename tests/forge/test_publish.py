"""`regforge publish`: from a run to the loopback Hub and back."""

import hashlib
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import LoopbackHub
from shell import Shell
from small_runs import write_small

from regforge.dataset import build
from regforge.dataset.store import read_rows
from regforge.forge import run
from regforge.journal import Reporter
from regforge.recipe import load_recipe
from regforge.records import ImageRow

CATS: dict[str, Any] = {
    "name": "cats",
    "subject": {"images": None},
    "prompts": {"count": 6, "sets": {"amplify": 1}},
}


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Path:
    """A run of six images, in three Parquet files; nobody writes into it."""
    top = tmp_path_factory.mktemp("made")
    write_small(top / "recipe.yaml", repo, **CATS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGFORGE_CACHE", str(top / "cache"))
        small_files(patch)
        run(load_recipe(top / "recipe.yaml"), out=top / "run", reporter=Reporter(quiet=True))
    return top


def small_files(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(build, "ROWS_PER_GROUP", 2)
    patch.setattr(build, "FILE_BYTES", 1)


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Path:
    """The run, to be written into."""
    shutil.copy(made_once / "recipe.yaml", tmp_path / "recipe.yaml")
    return Path(shutil.copytree(made_once / "run", tmp_path / "run"))


def rows_of(folder: Path) -> list[ImageRow]:
    return list(read_rows(folder / "dataset"))


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def local_files(folder: Path) -> dict[str, bytes]:
    return files_in(folder / "dataset")


def assert_is(row: dict[str, Any], expected: ImageRow) -> None:
    """That a row which `datasets` gave is the one of the run, to the last byte."""
    assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == expected.image_digest
    assert row["image"]["bytes"] == expected.image
    for column in ("text", "slots", "seed", "id", "scores", "model", "recipe_digest"):
        assert row[column] == getattr(expected, column), column


@pytest.mark.slow
def test_what_is_published_can_be_streamed(made: Path, hub: LoopbackHub, shell: Shell) -> None:
    assert shell("publish", made, "--repo-id", "me/cats", "--tag", "v1") == 0, shell.err
    told, ranged = {}, {}
    for how in ("--streaming", "--quiet"):
        before = len(hub.requests)
        assert shell("audit", "me/cats@v1", "--json", how) == 0, shell.err
        told[how] = json.loads(shell.out)["checks"]
        out = made.parent / how.strip("-")
        assert shell("export", "me/cats@v1", "--to", "kohya", "--out", out, how) == 0, shell.err
        assert len(list((out / "images").glob("*.txt"))) == 6
        ranged[how] = any(request.range for request in hub.requests[before:])
    assert told["--streaming"] == told["--quiet"]
    assert ranged == {"--streaming": True, "--quiet": False}


def test_ctrl_c_ends_in_a_sentence_and_goes_on(made: Path, hub: LoopbackHub, shell: Shell) -> None:
    hub.on("POST .*/preupload/", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert shell("publish", made, "--repo-id", "me/cats") == 130
    assert "Interrupted. The same command goes on" in shell.err
    assert "Traceback" not in shell.err
    assert hub.files("me/cats") == {}
    assert shell("publish", made, "--repo-id", "me/cats") == 0, shell.err
    assert hub.files("me/cats") == local_files(made)


def test_what_is_published_is_what_readers_get(made: Path, hub: LoopbackHub, shell: Shell) -> None:
    import datasets

    assert shell("publish", made, "--repo-id", "me/cats", "--tag", "v1") == 0, shell.err
    assert f"{hub.url}/datasets/me/cats" in shell.out
    assert 'load_dataset("me/cats", revision="v1", split="train")' in shell.out
    assert "Published: 6 images, cc-by-4.0." in shell.out
    assert hub.files("me/cats") == local_files(made)
    assert hub.tags("me/cats") == {"v1": hub.head("me/cats")}
    assert hub.repository("me/cats").private
    card = hub.files("me/cats")["README.md"].decode()
    # The attribution that the drawings ask for.
    for name in ("Noto", "Fluent", "Twemoji", "EmojiTwo", "creativecommons.org/licenses/by/4.0"):
        assert name in card

    expected = rows_of(made)
    plain = datasets.load_dataset("me/cats")
    assert list(plain) == ["train"]
    by_tag = datasets.load_dataset("me/cats", revision="v1", split="train")
    streamed = datasets.load_dataset("me/cats", split="train", streaming=True)
    for rows in (plain["train"], by_tag, streamed):
        found = list(rows.cast_column("image", datasets.Image(decode=False)))
        assert len(found) == 6
        for row, own in zip(found, expected, strict=True):
            assert_is(row, own)
    assert plain["train"][0]["image"].size == (96, 96)


@pytest.mark.slow
def test_json_says_all_and_again_writes_nothing(made: Path, hub: LoopbackHub, shell: Shell) -> None:
    (made / "dataset" / "NOTES.md").write_text("mine")
    assert shell("publish", made, "--repo-id", "me/cats", "--tag", "v1", "--json") == 0, shell.err
    first = json.loads(shell.out)
    assert sorted(first.pop("files")) == sorted(local_files(made))
    assert first == {
        "commit": hub.head("me/cats"),
        "repo_id": "me/cats",
        "url": f"{hub.url}/datasets/me/cats",
        "tag": "v1",
        "pull_request": None,
        "changed": True,
        "uploaded": 9,
        "deleted": 0,
        "unchanged": 0,
        "images": 6,
        "license": "cc-by-4.0",
        "own_files": ["NOTES.md"],
        "notes": [],
    }
    before = len(hub.writes)
    words = ("--tag", "v1", "--repo-id", "me/cats", "--license", "cc-by-4.0", "--json")
    assert shell("publish", made, *words) == 0, shell.err
    again = json.loads(shell.out)
    assert (again["changed"], again["uploaded"], again["unchanged"]) == (False, 0, 9)
    assert again["commit"] == first["commit"]
    assert shell("publish", made) == 0
    assert "Nothing to do: the Hub holds these 6 images already." in shell.out
    assert hub.writes[before:] == []
    for content in [*hub.files("me/cats").values(), *files_in(made).values()]:
        assert hub.token.encode() not in content


@pytest.mark.slow
def test_a_run_that_grew_replaces_its_files(
    made: Path, hub: LoopbackHub, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    shell("publish", made, "--repo-id", "me/cats", "--tag", "v1")
    first = hub.files("me/cats", "v1")
    hub.put("me/cats", {"data/mine.csv": "a,b\n1,2\n"})
    assert shell("run", "recipe.yaml", "--out", made, "--set", "prompts.count=8", "-q") == 0
    assert shell("publish", made, "--repo-id", "me/cats", "--tag", "v2", "--json") == 0, shell.err
    assert json.loads(shell.out)["deleted"] == 3
    assert hub.files("me/cats") == local_files(made) | {"data/mine.csv": b"a,b\n1,2\n"}
    assert hub.files("me/cats", "v1") == first
    assert len(rows_of(made)) == 8


@pytest.mark.slow
def test_as_a_pull_request_main_stays_as_it_is(made: Path, hub: LoopbackHub, shell: Shell) -> None:
    shell("publish", made, "--repo-id", "me/cats")
    head = hub.head("me/cats")
    (made / "dataset" / "NOTES.md").write_text("new")
    assert shell("publish", made, "--create-pr") == 0, shell.err
    assert hub.head("me/cats") == head
    assert len(hub.pull_requests("me/cats")) == 1
    assert "/datasets/me/cats/discussions/1" in shell.out
    assert "Offered as a pull request: 6 images" in shell.out
    assert "a person has to merge it" in shell.out


def test_the_recipe_says_where_to_and_what(
    made_once: Path, tmp_path: Path, hub: LoopbackHub, shell: Shell, repo: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    section = {"repo_id": "me/from-recipe", "license": "openrail++", "private": False}
    write_small(recipe, repo, **CATS, dataset=section)
    made = shutil.copytree(made_once / "run", tmp_path / "run")
    assert shell("run", recipe, "--out", made, "-q") == 0, shell.err
    before = local_files(made)
    assert shell("publish", made) == 0, shell.err
    assert hub.files("me/from-recipe") == local_files(made) == before
    assert not hub.repository("me/from-recipe").private
    assert "openrail++ was chosen as the licence; that of embedded/tinyworld is cc-by-4.0" in (
        shell.out
    )


def test_the_command_line_goes_before_recipes(made: Path, hub: LoopbackHub, shell: Shell) -> None:
    words = ["--repo-id", "me/cats", "--license", "cc-by-sa-4.0", "--public"]
    data = {path: content for path, content in local_files(made).items() if "data/" in path}
    assert shell("publish", made, *words) == 0, shell.err
    assert not hub.repository("me/cats").private
    after = local_files(made)
    assert hub.files("me/cats") == after
    assert data.items() <= after.items()
    card = after["README.md"].decode()
    assert "license: cc-by-sa-4.0\n" in card
    assert 'load_dataset("me/cats", split="train")' in card
    section = yaml.safe_load(after["recipe.yaml"])["dataset"]
    assert section["license"] == "cc-by-sa-4.0"
    assert (section["repo_id"], section["private"]) == ("me/cats", False)


def test_what_was_published_last_is_remembered(made: Path, hub: LoopbackHub, shell: Shell) -> None:
    shell("publish", made, "--repo-id", "me/cats", "--tag", "v1")
    state = json.loads((made / "state.json").read_text())
    expected = {"repo_id": "me/cats", "commit": hub.head("me/cats"), "tag": "v1"}
    assert state["published"] == expected
    shell("run", made.parent / "recipe.yaml", "--out", made, "-q")  # whose recipe names none
    assert shell("publish", made) == 2
    assert "It was published to me/cats before." in shell.err


def one_sentence(shell: Shell) -> str:
    """What was printed: an error of a line or two, and nothing that looks like a traceback."""
    message = shell.err[shell.err.index("error: ") :].strip()
    assert len(message.splitlines()) <= 2, message
    assert "Traceback" not in shell.err
    assert shell.out == ""
    return message


def test_what_has_to_be_said_first(made: Path, hub: LoopbackHub, shell: Shell) -> None:
    before = local_files(made)
    refused = [
        ("", "Where to? Neither --repo-id nor", 2),
        *((f"--repo-id {name}", "is named user/name", 2) for name in ("cats", "me/../c", "me/-c")),
        ("--repo-id me/cats@v1", "A repository is named user/name, not 'me/cats@v1'", 2),
        *((f"--repo-id me/c --tag={tag}", "cannot name", 2) for tag in ("a~b", "", "v1.lock")),
        ("--repo-id me/cats --license Apache-2", "mean 'apache-2.0'", 2),
        ("--repo-id me/cats --license qqq", "'qqq' is no licence identifier", 2),
        ("--repo-id me/cats --license other", "does not say which one", 1),
    ]
    for words, says, code in refused:
        assert shell("publish", made, *words.split()) == code, words
        assert says in one_sentence(shell)
    assert local_files(made) == before  # or what was refused would count the next time

    recipe = made / "dataset" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("embedded/tinyworld", "somebody/model"))
    assert shell("publish", made, "--repo-id", "me/cats") == 2
    message = one_sentence(shell)
    for part in ("somebody/model", "dataset.license", "--license"):
        assert part in message

    (made / "dataset" / "notes.txt").write_text("hf_abcdefghijklmnop")
    words = ("--repo-id", "me/cats", "--license", "mit")
    assert shell("publish", made, *words) == 1
    assert "notes.txt:1 holds" in one_sentence(shell)
    sorted(made.glob("dataset/data/*.parquet"))[1].unlink()
    assert shell("publish", made, *words) == 2
    assert "2 of 3 files are there" in one_sentence(shell)
    assert hub.requests == []


@pytest.mark.slow
def test_an_unfinished_run(made: Path, tmp_path: Path, hub: LoopbackHub, shell: Shell) -> None:
    assert shell("publish", tmp_path / "nothing", "--repo-id", "me/cats") == 2
    assert "is not the folder of a run" in one_sentence(shell)
    assert not (tmp_path / "nothing").exists()
    shutil.rmtree(made / "dataset")
    assert shell("publish", made, "--repo-id", "me/cats") == 2
    assert "holds no finished dataset" in one_sentence(shell)
    shell("render", made.parent / "recipe.yaml", "--out", tmp_path / "half", "--limit", 1, "-q")
    assert shell("publish", tmp_path / "half", "--repo-id", "me/cats") == 2
    assert "holds no finished dataset" in one_sentence(shell)
    assert hub.requests == []


@pytest.mark.parametrize(
    "says", ["may not write to me/cats", "cannot be reached", "OFFLINE is set"]
)
def test_where_the_hub_refuses_or_is_not_there_nothing_is_published(
    made: Path, hub: LoopbackHub, shell: Shell, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    if says == "cannot be reached":
        hub.fail("", "cut", times=math.inf)
    elif says == "OFFLINE is set":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setenv("HF_TOKEN", hub.read_token)
    assert shell("publish", made, "--repo-id", "me/cats", "--tag", "v1") == 1
    assert says in one_sentence(shell)
    assert hub.token not in shell.err
    assert (hub.head("me/cats"), hub.tags("me/cats")) == (None, {})
    assert "published" not in json.loads((made / "state.json").read_text())
    assert (hub.requests == []) == (says == "OFFLINE is set")
