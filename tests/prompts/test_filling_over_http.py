"""Vocabularies and captions through the real client, from a server that is good or bad at it."""

import json
import re
from itertools import islice
from pathlib import Path

import pytest
from builders import fill, recipe_of
from servers import Answer, Call, Faults, OpenAIServer, Reply, png_of, said
from test_filling import invented

from regforge.journal import Journal, Reporter, read
from regforge.prompts.composing import compose_rows
from regforge.prompts.filling import plan_calls
from regforge.prompts.photos import describe_photos
from regforge.prompts.vocabulary import Vocabulary
from regforge.providers.language_model import LanguageModelClient
from regforge.recipe import Recipe

QUIET = Reporter(quiet=True)


def recipe_for(server: OpenAIServer, at_once: int = 8, **prompts: object) -> Recipe:
    llm = {"model": "openai/loopback", "api_base": server.url, "max_concurrency": at_once}
    return recipe_of({"llm": {**llm, "timeout": 5}, "phrases_per_slot": 90, **prompts})


def phrases(call: Call) -> Reply:
    """A function of the question alone, as far as its words go; untidy on purpose."""
    text = call.text
    if "contradict" in text:
        return said('{"clashes": [{"phrase": 1, "backgrounds": [1, 2]}]}')
    slot = re.search(r'phrases for the slot "(\w+)"', text)
    wanted = re.search(r"with (\d+) strings", text)
    assert slot
    assert wanted
    known = text.partition("Already there:")[2].count("\n- ")
    made = invented(slot[1], int(wanted[1]), known)
    listed = [f"{number}. {phrase.capitalize()}." for number, phrase in enumerate(made, 1)]
    return said(json.dumps({"phrases": [*listed, "sks teapot"]}))


def client_of(recipe: Recipe, folder: Path, journal: Journal | None = None) -> LanguageModelClient:
    return LanguageModelClient(
        recipe.prompts.llm, journal=journal or Journal(None), cache_dir=folder, reporter=QUIET
    )


def filled_by(answer: Answer, folder: Path, at_once: int) -> Vocabulary:
    with OpenAIServer(answer) as server:
        recipe, journal = recipe_for(server, at_once), Journal(folder)
        with client_of(recipe, folder / "cache", journal) as client:
            return fill(recipe, client, journal)


@pytest.mark.slow
def test_a_vocabulary_is_the_same_from_a_good_server_and_from_a_bad_one(tmp_path: Path) -> None:
    faults = Faults(phrases, share=0.3, kinds=("prose", "think", "wrong schema"))
    one = filled_by(phrases, tmp_path / "one", at_once=1)
    bad = filled_by(faults, tmp_path / "bad", at_once=8)
    assert faults.made
    assert one == bad
    assert {len(texts) for texts in one.slots.values()} == {90}
    assert len(one.incompatible) >= 2
    refused = [entry["reason"] for entry in read(tmp_path / "one" / "ledger.jsonl")]
    assert any("contains the identifier 'sks'" in reason for reason in refused)


def test_the_same_vocabulary_is_asked_for_only_once(tmp_path: Path) -> None:
    with OpenAIServer(phrases) as server:
        recipe = recipe_for(server)
        for _ in range(2):
            with client_of(recipe, tmp_path) as client:
                fill(recipe, client)
    assert len(server.calls) == plan_calls(recipe).calls


def captions(call: Call) -> Reply:
    """Rows that depend on what is shown as used, and on the batch's theme."""
    used = len(re.findall(r"in hall \d+", call.text))
    theme = re.search(r"In this batch, favor (\w+)", call.text)
    assert theme
    numbers = range(used, used + 5)
    rows = [{"color": f"{theme[1]} red {n}", "background": f"in hall {n}"} for n in numbers]
    return said(json.dumps({"captions": rows}))


def test_composed_rows_do_not_depend_on_concurrency_or_faults(tmp_path: Path) -> None:
    taken = []
    faults = Faults(captions, share=0.3, kinds=("prose", "think", "truncated"))
    for at_once, answer in ((1, captions), (8, faults)):
        with OpenAIServer(answer) as server:
            slots = ["color", "background"]
            recipe = recipe_for(server, at_once, mode="compose", slots=slots, compose_batch=5)
            with client_of(recipe, tmp_path / str(at_once)) as client:
                taken.append(list(islice(compose_rows(recipe, client, journal=Journal(None)), 60)))
    assert taken[0] == taken[1]
    assert len({json.dumps(row) for row in taken[0]}) == 60


@pytest.mark.parametrize("kind", ["object", "living"])
def test_photos_reach_a_vision_model_as_images(tmp_path: Path, kind: str) -> None:
    (tmp_path / "1.png").write_bytes(png_of(0, 32, 24))

    def answer(call: Call) -> Reply:
        assert call.body["model"] == "eyes"
        content = call.body["messages"][-1]["content"]
        assert content[1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
        assert set(call.schema["required"]) >= {"background", "lighting"}
        return said('{"background": "on a mat", "pose": "dozing", "lighting": ""}')

    with OpenAIServer(answer) as server:
        recipe = recipe_of(
            {"llm": {"vision_model": "openai/eyes", "api_base": server.url}},
            subject={"class_noun": "gizmo", "kind": kind, "identifier": "sks"},
        )
        with client_of(recipe, tmp_path) as client:
            captions = describe_photos([tmp_path / "1.png"], recipe, client)
    pose = "dozing " if kind == "living" else ""
    assert captions == {"1.png": f"a photo of a sks gizmo {pose}on a mat"}
