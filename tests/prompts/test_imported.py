"""Captions of another dataset: kept in a file, and handed on by the `import` set."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import by_words, drawing, photos_of, vocabulary_of, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regforge.journal import Journal, read
from regforge.prompts.filling import CallPlan, plan_calls
from regforge.prompts.imported import (
    ImportedCaption,
    ImportedCaptions,
    NotImported,
    save_captions,
)
from regforge.prompts.prompt_sets import NotEnoughPrompts
from regforge.prompts.vocabulary import Vocabulary
from regforge.prompts.writing import write_prompts
from regforge.recipe import Recipe
from regforge.records import Example, Prompt

SHARED_FOLDER = HealthCheck.function_scoped_fixture  # each example writes its file anew
NO_WORDS = Vocabulary("teapot", "object", {})
FROM = {"import": {"dataset": "me/reg"}}


def taking(*captions: str | ImportedCaption) -> ImportedCaptions:
    made = [ImportedCaption(each) if isinstance(each, str) else each for each in captions]
    return ImportedCaptions("me/reg", made)


def importing(sets: Mapping[str, float] | None = None, **options: Any) -> Recipe:
    return drawing(options.pop("slots", {}), sets=sets or {"import": 1}, **FROM, **options)


def examples(*captions: str | None, **facts: Any) -> list[Example]:
    return [Example(str(n), b"", text, 64, 64, **facts) for n, text in enumerate(captions)]


def texts(prompts: Iterable[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts if prompt.prompt_set == "import"]


def test_captions_come_in_the_datasets_order_and_say_where_they_are_from() -> None:
    named = ImportedCaption("a red teapot at dusk", {"color": "red", "mood": "sad"}, "openai/x")
    made = importing(slots={"color": None, "style": None})
    first, second = written(made, 2, NO_WORDS, imported=taking(named, "a teapot by a lake"))
    assert (first.text, second.text) == ("a red teapot at dusk", "a teapot by a lake")
    assert first.slots == {"color": "red", "style": None}
    assert second.slots == {"color": None, "style": None}
    assert (first.language_model, second.language_model) == ("openai/x", None)
    assert {(p.prompt_set, p.template, p.reference, p.seed) for p in (first, second)} == {
        ("import", "", None, None)
    }
    assert (first.class_noun, first.kind) == ("teapot", "object")


def test_what_no_caption_may_say_is_passed_over_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "no.txt").write_text("a lake\n")
    made = importing(exclude=[str(tmp_path / "no.txt")], over_limit="shorten")
    long = "a teapot " + "very " * 20 + "blue"
    usable, refused = ["a teapot", "masks"], ["", "A teapot!", "a teapot by a lake", long]
    captions = taking("a photo of a SKS teapot", "a teapot", *refused, "masks")
    options = {"imported": captions, "budget": by_words(20), "journal": Journal(tmp_path)}
    assert texts(written(made, 2, NO_WORDS, **options)) == usable, "a name within a word is none"
    ledger = {entry["raw"]: entry["reason"] for entry in read(tmp_path / "ledger.jsonl")}
    assert ledger == {
        "a photo of a SKS teapot": "names the identifier",
        "A teapot!": "was said before",
        "a teapot by a lake": "says what is excluded, 'a lake'",
        long: "has 25 tokens",
    }
    assert {entry["item"] for entry in read(tmp_path / "ledger.jsonl")} == {"import caption"}


def test_too_few_captions_are_an_error_that_says_why() -> None:
    captions = taking("a teapot", "a teapot", "", "one more", "a sks teapot", "A Teapot")
    with pytest.raises(NotEnoughPrompts) as caught:
        written(importing(), 5, NO_WORDS, imported=captions)
    message = str(caught.value)
    assert "Only 2 of 5 captions" in message
    assert "It has 6 images, 1 without a caption; of its captions 2 were said before" in message
    assert "set prompts.count to 2" in message
    with pytest.raises(NotEnoughPrompts) as caught:
        written(importing(), 5, NO_WORDS, imported=taking())
    assert "set prompts.count to 0" not in str(caught.value)


def test_no_set_says_what_another_has_said() -> None:
    slots = {"color": ("red", "blue")}
    made = importing({"import": 1, "amplify": 1, "naive": 1}, slots=slots)
    captions = taking("a photo of a teapot", "a red teapot", "a photo, of a teapot", "tea")
    prompts = written(made, 6, vocabulary_of(slots), imported=captions)
    assert texts(prompts) == ["a red teapot", "tea"]
    amplified = [p.text for p in prompts if p.prompt_set == "amplify"]
    assert "a red teapot" not in amplified[1:]


@pytest.mark.parametrize("slots", [{}, {"mood": None}, {"color": ("red",), "style": None}])
def test_imported_captions_alone_need_no_phrases_and_nobody_is_asked(slots: dict[str, Any]) -> None:
    made = importing(slots=slots)
    assert plan_calls(made) == CallPlan()
    (prompt,) = written(made, 1, NO_WORDS, imported=taking("a teapot"))
    assert list(prompt.slots) == list(slots)
    both = importing({"import": 1, "naive": 1}, slots=slots)
    assert plan_calls(both) == CallPlan()
    assert len(written(both, 2, NO_WORDS, imported=taking("tea"))) == 2


def test_photos_match_only_their_own_set() -> None:
    sets, render = {"import": 1, "against": 1}, {"width": 64, "height": 64}
    made = importing(sets, slots={"color": None}, match=["size", "seed"], render=render)
    shown, words = photos_of("a photo of a sks teapot"), vocabulary_of({"color": ("red", "blue")})
    prompts = written(made, 4, words, imported=taking("a", "b"), photos=shown)
    matched = {p.prompt_set: (p.width, p.seed, p.reference) for p in prompts}
    assert matched["import"] == (None, None, None)
    assert matched["against"][2] == "00.jpg"


def test_where_captions_are_composed_imported_ones_may_not_be_nearly_the_same_either() -> None:
    sets = {"import": 1, "amplify": 1}
    made = importing(sets, slots={"background": None}, mode="compose", near_duplicates=0.6)
    rows = iter([{"background": "on a table"}, {"background": "in a boat at night"}])
    captions = taking("the photo of a teapot on a table", "a teapot")
    prompts = written(made, 2, NO_WORDS, imported=captions, rows=rows)
    assert [p.text for p in prompts] == ["a photo of a teapot on a table", "a teapot"]


WORDS = st.lists(st.sampled_from("a red blue teapot sks tea by the lake very".split()), max_size=6)
MANY = st.lists(WORDS.map(" ".join), max_size=40)


@pytest.mark.slow
@settings(max_examples=60)
@given(MANY, st.integers(0, 20), st.integers(0, 20))
def test_more_captions_keep_those_there_are(captions: list[str], few: int, more: int) -> None:
    made = importing({"import": 2, "amplify": 1}, slots={"color": None, "background": None})
    slots = {"color": [f"c{n}" for n in range(9)], "background": [f"at {n}" for n in range(9)]}
    options = {"budget": by_words(7), "imported": taking(*captions)}

    def prompts(count: int) -> list[Prompt]:
        made_so_far = write_prompts(made, vocabulary_of(slots), count=count, **options)
        found: list[Prompt] = []
        with contextlib.suppress(NotEnoughPrompts):
            found.extend(made_so_far)
        return found

    short, long = prompts(few), prompts(few + more)
    assert long[: len(short)] == short
    usable = [c for c in captions if c and "sks" not in c.split() and len(c.split()) <= 5]
    assert texts(long) == list(dict.fromkeys(usable))[: len(texts(long))]
    imported = [p.slots for p in long if p.prompt_set == "import"]
    assert all(slots == {"color": None, "background": None} for slots in imported)


def save(path: Path, made: Iterable[Example], **options: Any) -> list[str]:
    return save_captions(path, "me/reg", made, class_noun="teapot", **options)


def loaded(path: Path) -> list[ImportedCaption]:
    return list(ImportedCaptions.load(path).captions)


def test_the_file_keeps_captions_slots_and_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "imported.jsonl"
    facts: dict[str, Any] = {"slots": {"color": " red ", "style": None}}
    facts["metadata"] = {"language_model": "x/y", "seed": 4}
    made = [*examples("a\n red \tteapot ", **facts), *examples(None, "  ", "zwölf Teekannen 🫖")]
    save(path, iter(made), revision="0" * 40)
    there = ImportedCaptions.load(path)
    assert (there.dataset, there.revision) == ("me/reg", "0" * 40)
    others = map(ImportedCaption, ("", "", "zwölf Teekannen 🫖"))
    expected = [ImportedCaption("a red teapot", {"color": "red"}, "x/y"), *others]
    assert list(there.captions) == expected
    assert list(there.captions) == expected, "it can be gone through again"
    assert "zwölf Teekannen 🫖" in path.read_text(encoding="utf-8")


@settings(suppress_health_check=[SHARED_FOLDER])
@given(st.lists(st.none() | st.text(st.characters(), max_size=30), max_size=8))
def test_any_text_survives_but_for_white_space(tmp_path: Path, captions: list[str | None]) -> None:
    path = tmp_path / "imported.jsonl"
    save(path, examples("one", *captions))
    read_back = [each.text for each in loaded(path)]
    assert len(read_back) == len(captions) + 1
    for text, kept in zip(["one", *captions], read_back, strict=True):
        visible = re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]", "", text or "")
        assert kept.replace(" ", "") == visible
        assert "  " not in kept
        assert kept == kept.strip()
        assert kept.isprintable() or any(not c.isprintable() for c in visible)


def test_a_dataset_without_captions_or_an_end_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[Example]:
        yield from examples("a teapot", "another")
        raise NotImported("the rest is damaged")

    with pytest.raises(NotImported, match="damaged"):
        save(tmp_path / "imported.jsonl", broken())
    with pytest.raises(NotImported, match="No image of me/reg has a caption"):
        save(tmp_path / "imported.jsonl", examples(None, " ", ""))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((text, "does not begin with") for text in ("", "\n", "[]\n", '{"text": "a"}\n')),
        ('{"dataset": "x"}\n{"text": "a"}\nb\n', "imported.jsonl:3: is no caption"),
        ('{"dataset": "x"}\n{"caption": "a"}\n', "imported.jsonl:2: is no caption"),
        ('{"dataset": "x"}\n{"text": "a", "slots": ["b"]}\n', "imported.jsonl:2: is no caption"),
    ],
)
def test_a_file_that_is_broken_has_its_line_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "imported.jsonl"
    path.write_text(text)
    with pytest.raises(NotImported, match=says) as caught:
        loaded(path)
    assert caught.value.exit_code == 2


def test_a_file_may_be_edited_and_captions_about_something_else_are_told(
    tmp_path: Path,
) -> None:
    path = tmp_path / "imported.jsonl"
    save(path, examples("a teapot", "a cup"))
    with path.open("a") as lines:
        lines.write(json.dumps({"text": " a  kettle"}) + "\n\n")
    assert [each.text for each in loaded(path)] == ["a teapot", "a cup", "a kettle"]
    path = tmp_path / "imported.jsonl"
    assert save(path, examples("a teapot", "two teapots", "a cup")) == []
    assert save(path, examples("a teapot", "a cup", None)) == []
    (note,) = save(path, examples("a teapot", "a cup", "a mug"))
    assert "only 1 of 3 captions of me/reg name the class noun, 'teapot'" in note
