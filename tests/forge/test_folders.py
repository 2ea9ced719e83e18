"""A run's folder: whose it is, what may be deleted in it, and what somebody has edited in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import OpenAIServer, refused
from shell import Shell
from small_runs import WriteRecipe, quietly, rows_of, write_captioned

from regforge.errors import RegforgeError
from regforge.journal import Journal, read
from regforge.recipe import Recipe, load_recipe
from regforge.runs import OwnedFolder, RunFolder

DEEP = "[" * 100_000


def captions(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "prompts.jsonl").open(encoding="utf-8")]


def rewrite(out: Path, change: Callable[[list[dict[str, Any]]], None]) -> bytes:
    """Edit prompts.jsonl; returns what it says then."""
    lines = captions(out)
    change(lines)
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (out / "prompts.jsonl").write_bytes(content)
    return content


@pytest.mark.parametrize("content", ["", "\0\0\0", "{", "{}", '{"version": 99}', None], ids=repr)
def test_a_damaged_state_locks_nobody_out(small: Recipe, tmp_path: Path, content: str) -> None:
    out = tmp_path / "run"
    quietly(small, out, until="prompts")
    before = captions(out)
    state = out / "state.json"
    if content is None:
        state.unlink()
    else:
        state.write_text(content)
    assert quietly(small, out, until="prompts").prompts == 10
    assert captions(out) == before
    state.write_text(content or "")
    (out / "mine.txt").write_text("words")
    assert quietly(small, out, until="prompts", fresh=True).prompts == 10
    assert (out / "mine.txt").read_text() == "words"


def test_what_a_killed_first_write_leaves_is_nobodys(
    small: Recipe, tmp_path: Path, shell: Shell, write_recipe: WriteRecipe
) -> None:
    out = tmp_path / "run"
    for fresh in ([], ["--fresh"]):
        (out / "shards").mkdir(parents=True, exist_ok=True)
        for place in (out, out / "shards"):
            (place / ".unfinished-0123456789abcdef").write_text("half")
        (out / ".unfinished-dataset").mkdir()
        (out / "state.json").write_text("") if fresh else (out / "shards").rename(out / "s")
        if not fresh:
            (out / "s").rename(tmp_path / "aside")
        assert shell("check", write_recipe(), "--out", out) == 0, shell.err
        assert "other files" not in shell.out
        assert shell("prompts", write_recipe(), "--out", out, "-q", *fresh) == 0, shell.err
        assert not list(out.rglob(".unfinished-*"))


def test_a_folder_of_somebody_elses_is_not_taken_for_a_run(small: Recipe, tmp_path: Path) -> None:
    quietly(small, tmp_path / "run", until="prompts")
    copy = (tmp_path / "run" / "recipe.yaml").read_bytes()
    for name, content in (("recipe.yaml", copy), ("thesis.tex", b"years of work")):
        mine = tmp_path / f"my-{name}"
        mine.mkdir()
        (mine / name).write_bytes(content)
        for fresh in (False, True):
            with pytest.raises(RegforgeError, match="other files") as caught:
                quietly(small, mine, fresh=fresh)
            assert caught.value.exit_code == 2
        assert {path.name: path.read_bytes() for path in mine.iterdir()} == {name: content}


def test_two_processes_cannot_hold_it_and_no_lock_is_left(small: Recipe, tmp_path: Path) -> None:
    folder = OwnedFolder(tmp_path / "run")
    for _ in range(2):
        with folder.locked():
            with pytest.raises(RegforgeError), OwnedFolder(folder.path).locked():
                pass
            with pytest.raises(RegforgeError, match="Another"):
                quietly(small, folder.path)
        assert list(folder.path.iterdir()) == []


@pytest.mark.slow
def test_fresh_deletes_what_was_made_and_nothing_else(small: Recipe, tmp_path: Path) -> None:
    out, photos = tmp_path / "run", tmp_path / "elsewhere"
    photos.mkdir()
    (photos / "cat.png").write_bytes(b"x")
    quietly(small, out, limit=2)
    mine = [
        *("notes.txt", "photos/cat.jpg", "dataset/notes.md", "dataset/data/more.txt"),
        *("shards/list.txt", "staging/cat.webp", "README.md", "lora/mine.safetensors"),
        "mine.parquet",
    ]
    for name in mine:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    (out / "link").symlink_to(photos)
    card = out / "dataset" / "README.md"
    card.write_text(card.read_text() + "\nMy own words.\n")
    quietly(small, out, fresh=True, until="prompts")
    for name in mine:
        assert (out / name).read_text() == "mine", name
    assert (out / "link" / "cat.png").exists()
    assert not list(out.glob("shards/*.parquet"))
    assert not list(out.glob("dataset/data/*.parquet"))
    assert not (out / "report.html").exists()
    quietly(small, out, limit=3)
    assert "My own words." in card.read_text()
    assert (out / "dataset" / "notes.md").read_text() == "mine"


def test_fresh_is_for_its_own_kind(small: Recipe, tmp_path: Path, shell: Shell, repo: Path) -> None:
    out = tmp_path / "run"
    quietly(small, out, until="prompts")
    training = repo / "recipes" / "train-quickstart.yaml"
    assert shell("train", training, "--out", out, "--fresh", "-q") == 2
    assert len(captions(out)) == 10


def test_nothing_locks_no_folder(shell: Shell, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    out, slots = tmp_path / "run", [{"name": "color"}, {"name": "style", "values": ["a photo of"]}]
    with OpenAIServer(lambda _: refused(404, "no such model")) as server:
        llm = {"model": "openai/none", "api_base": server.url, "max_attempts": 2}
        recipe = write_recipe(prompts={"slots": slots, "llm": llm, "sets": {"amplify": 1}})
        assert shell("prompts", recipe, "--out", out) == 1
    assert (out / "ledger.jsonl").exists() or (out / "log.jsonl").exists()
    assert shell("prompts", write_recipe(seed=3), "--out", out) == 0, shell.err
    assert len(captions(out)) == 10
    assert shell("prompts", write_recipe(seed=4), "--out", out) == 2, "now something was made"


@pytest.mark.slow
def test_datasets_do_not_shrink(shell: Shell, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", write_recipe(prompts={"count": 6})
    assert shell("run", recipe, "--out", out, "-q") == 0, shell.err
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for words in (["--limit", 2], ["--set", "prompts.count=5"]):
        assert shell("run", recipe, "--out", out, *words) == 2
        assert "6 images" in shell.err
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "state.json").write_text("")  # counted where they are
    assert shell("run", recipe, "--out", out, "--limit", 2) == 2
    assert shell("check", recipe, "--out", out, "--set", "prompts.count=5") == 0
    assert "6 images" in shell.out
    assert shell("prompts", recipe, "--out", out, "--limit", 2, "-q") == 0, "nothing is lost by it"
    assert shell("run", recipe, "--out", out, "-q") == 0
    assert shell("run", recipe, "--out", out, "-q", "--set", "prompts.count=7") == 0, shell.err
    assert shell("run", recipe, "--out", out, "-q", "--limit", 2, "--fresh") == 0, shell.err


@pytest.mark.slow
def test_an_edited_caption_is_drawn_with_its_row(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(prompts={"count": 4, "sets": {"amplify": 1}}))
    out = tmp_path / "run"
    before = rows_of(quietly(recipe, out))

    def change(lines: list[dict[str, Any]]) -> None:
        lines[1]["text"] = f"{lines[1]['slots']['style']} an orange cat on a roof"
        lines[2]["slots"]["color"] = None

    rewrite(out, change)
    after = rows_of(quietly(recipe, out))
    assert after[1].text.endswith("an orange cat on a roof")
    assert after[1].image_digest != before[1].image_digest
    assert after[1].slots == {**before[1].slots, "color": None, "background": None}
    assert after[2].image_digest == before[2].image_digest, "its caption is the same"
    assert after[2].slots == {**before[2].slots, "color": None}
    assert [after[0], after[3]] == [before[0], before[3]]
    more = load_recipe(write_recipe(prompts={"count": 6, "sets": {"amplify": 1}}))
    assert rows_of(quietly(more, out))[:4] == after
    edited = (out / "prompts.jsonl").read_bytes()
    assert [line["text"] for line in captions(out)[:4]] == [row.text for row in after]
    vocabulary = (out / "vocabulary.json").read_text().replace('"pink"', '"violet"')
    (out / "vocabulary.json").write_text(vocabulary)
    with pytest.raises(RegforgeError, match="was edited") as caught:
        quietly(more, out)
    assert caught.value.exit_code == 2
    assert (out / "prompts.jsonl").read_bytes() == edited


def put(number: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda lines: lines[number].update(values)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (put(2, text="a photo of a SKS cat"), 3),
        (put(0, text="  "), 1),
        (put(4, text="very " * 90 + "old cat"), 5),
        (put(3, text=7), 4),
        (put(3, slots=["red"]), 4),
        (put(3, slots={"color": 3}), 4),
        (put(3, index=9), 4),
        (put(3, other=1), 4),
        (lambda lines: lines.pop(2), 3),
    ],
)
def test_an_edited_caption_that_cannot_be_used_is_named(
    small: Recipe,
    tmp_path: Path,
    change: Callable[[list[dict[str, Any]]], None],
    line: int,
) -> None:
    out = tmp_path / "run"
    quietly(small, out, until="prompts")
    content = rewrite(out, change)
    with pytest.raises(RegforgeError, match=rf"prompts\.jsonl, line {line}: ") as caught:
        quietly(small, out)
    assert caught.value.exit_code == 2
    assert (out / "prompts.jsonl").read_bytes() == content


@pytest.mark.parametrize("name", ["prompts.jsonl", "vocabulary.json", "imported.jsonl"])
@pytest.mark.parametrize(
    "content", [DEEP.encode(), b"\xff\xfe\xfa", b"null"], ids=["deep", "no text", "null"]
)
def test_files_that_are_no_text_or_nested_deeply_get_a_sentence(
    shell: Shell, write_recipe: WriteRecipe, tmp_path: Path, name: str, content: bytes
) -> None:
    write_captioned(tmp_path / "reg", [f"a cat on table {n}" for n in range(4)])
    imports = {"sets": {"import": 1, "amplify": 1}, "import": {"dataset": "reg"}, "count": 4}
    recipe, out = write_recipe(prompts=imports), tmp_path / "run"
    assert shell("prompts", recipe, "--out", out, "-q") == 0, shell.err
    (out / name).write_bytes(content)
    for command in ("prompts", "check"):
        code = shell(command, recipe, "--out", out)
        assert "Traceback" not in shell.err
        if command == "prompts":
            assert code == 2
            assert name in shell.err
    assert (out / name).read_bytes() == content


@pytest.mark.parametrize(
    "content", [DEEP, "null", '{"000.png": 3}', "{"], ids=["deep", "null", "number", "half"]
)
def test_captions_that_cannot_be_read_get_a_sentence(
    shell: Shell, write_recipe: WriteRecipe, tmp_path: Path, content: str
) -> None:
    llm = {"vision_model": "openai/nobody", "api_base": "http://127.0.0.1:9"}
    photos = write_captioned(tmp_path / "photos", [None])
    subject = {"captions": "auto", "images": str(photos)}
    recipe = write_recipe(subject=subject, prompts={"llm": llm})
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.own(load_recipe(recipe), fresh=False)
    folder.captions.write_text(content)
    assert shell("prompts", recipe, "--out", folder.path) == 2
    assert "captions.json" in shell.err
    assert "Traceback" not in shell.err
    assert folder.captions.read_text() == content


def test_a_line_with_any_character_is_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    odd = "a\u2028b\u2029c\x85d\x0be\x1cf\r\ng"
    journal.failure("prompts", "slot color", odd, raw=odd)
    journal.event("llm_call", said=odd)
    assert [each["reason"] for each in read(tmp_path / "ledger.jsonl")] == [odd]
    assert [each["said"] for each in read(tmp_path / "log.jsonl")] == [odd]


@pytest.mark.parametrize("half", [b'{"time": 1, "event": "llm', b"\xff", b"[" * 100_000 + b"\n"])
def test_a_line_cut_in_half_costs_no_other(tmp_path: Path, half: bytes) -> None:
    journal = Journal(tmp_path)
    journal.event("one")
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(half)
    Journal(tmp_path).event("two")
    journal.event("three")
    assert [each["event"] for each in read(tmp_path / "log.jsonl")] == ["one", "two", "three"]


def test_a_file_as_folder_is_said(tmp_path: Path, shell: Shell, write_recipe: WriteRecipe) -> None:
    recipe = write_recipe()
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    for command in ("run", "prompts", "render"):
        assert shell(command, recipe, "--out", tmp_path / "mine") == 2
        assert "is a file" in shell.err
    assert shell("check", recipe, "--out", tmp_path / "mine") == 0
    assert "is a file" in shell.out
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"
