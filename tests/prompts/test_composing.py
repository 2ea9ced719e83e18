"""Compose mode: the language model fills all its slots of each caption together."""

import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from builders import FakeClient, recipe_of, text_of

from regforge.errors import EXIT_FAILED, EXIT_USAGE
from regforge.journal import Journal, read
from regforge.prompts.composing import CALLS_PER_WAVE, compose_rows
from regforge.prompts.vocabulary import VocabularyError
from regforge.providers.language_model import Question

SLOTS = ["color", "background", {"name": "style", "values": ["a photo of"]}]
COMPOSE = {"mode": "compose", "slots": SLOTS, "compose_batch": 5}


def numbered(number: int) -> dict[str, str]:
    return {"color": f"red {number}", "background": f"in hall {number}"}


def answers_well(question: Question, attempt: int) -> Any:
    """Rows that no other call gives, all with one phrase in common."""
    wave, call = map(int, re.findall(r"\d+", question.item))
    first = (wave * CALLS_PER_WAVE + call) * 5
    return {"captions": [numbered(number) for number in range(first, first + 5)]}


def rows_of(client: FakeClient, count: int, journal: Journal | None = None, **prompts: Any) -> Any:
    recipe = recipe_of({**COMPOSE, **prompts})
    rows = compose_rows(recipe, client, journal=journal or Journal(None))  # type: ignore[arg-type]
    return list(islice(rows, count))


def test_rows_do_not_depend_on_how_many_are_taken_or_how_many_calls_are_open() -> None:
    one, eight = FakeClient(answers_well), FakeClient(answers_well, at_once=8)
    few, many = rows_of(one, 7), rows_of(eight, 90)
    assert many[:7] == few
    assert all(row.keys() == {"color", "background"} for row in many)
    assert len({row["color"] for row in many}) == len(many) == 90
    assert [q.seed for q in eight.asked][:4] == [q.seed for q in one.asked]


def test_nothing_is_asked_before_a_row_is_taken() -> None:
    client = FakeClient(answers_well)
    assert rows_of(client, 0) == []
    assert client.asked == []
    rows_of(client, 1)
    assert len({text_of(question) for question in client.asked}) == CALLS_PER_WAVE
    assert len({question.seed for question in client.asked}) == CALLS_PER_WAVE
    assert len(client.asked) == CALLS_PER_WAVE


def test_each_wave_is_shown_what_was_used_before_it_most_used_first() -> None:
    def answer(question: Question, attempt: int) -> Any:
        rows = answers_well(question, attempt)["captions"]
        return {"captions": [{**row, "color": "ruby"} for row in rows]}

    client = FakeClient(answer)
    rows_of(client, 100)
    waves = [client.asked[at : at + CALLS_PER_WAVE] for at in range(0, 20, CALLS_PER_WAVE)]
    assert not any("Used before" in text_of(question) for question in waves[0])
    for question in waves[1]:
        assert "- color: ruby (20)\n" in text_of(question)
        assert "; in hall 25\n" in text_of(question)
    last = text_of(waves[4][0])
    assert "- color: ruby (80)\n" in last
    shown = re.search(r"\n- background: (in hall .*)\n", last)
    assert shown
    assert len(shown[1].split("; ")) == 40  # prompts stay short
    assert "in hall 99" in shown[1]  # the latest of those used equally often


def test_rows_that_leak_or_lack_a_slot_are_dropped_and_written_down(tmp_path: Path) -> None:
    def answer(question: Question, attempt: int) -> Any:
        good = answers_well(question, attempt)["captions"][:3]
        leak = {"color": "sks red", "background": "in a hall"}
        return {"captions": [leak, {"color": "red"}, *good]}

    rows = rows_of(FakeClient(answer), 12, Journal(tmp_path))
    assert all("sks" not in row["color"] for row in rows)
    reasons = [entry["reason"] for entry in read(tmp_path / "ledger.jsonl")]
    assert len(reasons) == CALLS_PER_WAVE
    assert "contains the identifier" in reasons[0]
    assert "background '' (empty)" in reasons[0]


def test_a_reply_of_bad_rows_is_asked_for_again_and_a_failed_call_leaves_the_others() -> None:
    def answer(question: Question, attempt: int) -> Any:
        if attempt:
            return answers_well(question, attempt)
        return {"captions": [{"color": "red teapot", "background": "in a hall"}] * 5}

    client = FakeClient(answer)
    assert len(rows_of(client, 20)) == 20
    assert "names the class noun" in client.complaints["captions, wave 1, call 1"][0]

    def answer(question: Question, attempt: int) -> Any:
        return "no" if question.item.endswith("call 2") else answers_well(question, attempt)

    assert len(rows_of(FakeClient(answer), 15)) == 15


def test_values_of_a_slot_are_all_that_may_be_said() -> None:
    slots = ["background", {"name": "color", "from": "llm", "values": ["Deep Red", "ivory"]}]

    def answer(question: Question, attempt: int) -> Any:
        colors = ["deep red", "mauve", "ivory", "deep-red", "Ivory."]
        rows = answers_well(question, attempt)["captions"]
        return {"captions": [{**r, "color": c} for r, c in zip(rows, colors, strict=True)]}

    client = FakeClient(answer)
    rows = rows_of(client, 16, slots=slots)
    assert {row["color"] for row in rows} == {"Deep Red", "ivory"}
    assert '"Deep Red", "ivory"' in text_of(client.asked[0])
    properties = client.asked[0].schema["properties"]["captions"]["items"]["properties"]
    assert properties["color"] == {"type": "string", "enum": ["Deep Red", "ivory"]}


def test_a_model_that_repeats_itself_ends_in_an_error() -> None:
    client = FakeClient(lambda *_: {"captions": [numbered(number) for number in range(5)]})
    with pytest.raises(VocabularyError, match="nothing new after 5 captions") as caught:
        rows_of(client, 6)
    assert caught.value.exit_code == EXIT_FAILED
    assert len(client.asked) == 4 * CALLS_PER_WAVE


def test_compose_without_a_slot_for_the_model_is_told() -> None:
    with pytest.raises(VocabularyError, match="needs a slot") as caught:
        rows_of(FakeClient(answers_well), 1, slots=[SLOTS[2]])
    assert caught.value.exit_code == EXIT_USAGE
