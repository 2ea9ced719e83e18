"""From what language models really say to checked values, and the schemas they are sent."""

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from regforge.providers.replies import (
    Rung,
    json_values,
    repair_turn,
    strict_schema,
    understand,
    without_annotations,
    without_thoughts,
)


class Colors(BaseModel):
    colors: list[str] = Field(min_length=1, max_length=3)
    note: str = ""


GOOD = '{"colors": ["red", "sea green"]}'

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_objects = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers() | texts | st.floats(allow_nan=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@pytest.mark.parametrize(
    "said",
    [
        GOOD,
        f"\ufeff \n{GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n``` Hope that helps!",
        f"Sure! Here you are [as asked]: {GOOD} Shall I go on {{or not}}?",
        f'<think>They want {{JSON}}, so {{"colors": []}} won\'t do.</think>\n{GOOD}',
        f'<Think>\n{{"colors": ["blue"]}}\n</Think>```json\n{GOOD}```',
        f'I should say {{"colors": ["blue"]}}.\n</think>\n{GOOD}',
        f"<think>{GOOD}",
        f"<thinking>hm</thinking><reasoning>so</reasoning>{GOOD}",
        f'First try: {{"colours": []}}. Better: {GOOD}',
        '{"colors": ["red", "sea\ngreen"]}'.replace("\n", " "),
    ],
)
def test_json_is_found_in_what_stands_around_it(said: str) -> None:
    reading = understand(said, Colors)
    assert reading.complaints == ()
    assert reading.value == Colors(colors=["red", "sea green"])


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("", "The reply is empty."),
        ("  \n ", "The reply is empty."),
        ("<think>I wonder what they want.</think>", "thoughts alone"),
        ("<think>I wonder what they", "thoughts alone"),
        ("Red and blue are nice.", 'no complete JSON in it. It begins: "Red and blue are nice."'),
        (GOOD[:-1], "no complete JSON"),
        (GOOD[:-8], "no complete JSON"),
        ('{"colors": "red"}', "colors: Input should be a valid list"),
        ('{"colors": []}', "colors: List should have at least 1 item"),
        ('{"colors": ["a", 7]}', "colors.1: Input should be a valid string"),
        ("[1, 2]", "Input should be a valid dictionary"),
        ("[" * 100_000, "no complete JSON"),
        ('{"colors": ["a", {"x": "' + "{" * 10_000, "no complete JSON"),
    ],
)
def test_what_is_wrong_is_said(said: str, complaint: str) -> None:
    reading = understand(said, Colors)
    assert reading.value is None
    assert not reading.fits
    assert complaint in " ".join(reading.complaints)


def test_further_checks_are_complaints_of_which_a_flood_is_cut() -> None:
    reading = understand(GOOD, Colors, lambda reply: [f"{reply.colors[0]} is banned."])
    assert (reading.value, reading.complaints, reading.fits) == (None, ("red is banned.",), True)
    reading = understand(json.dumps({"colors": [1, 2, 3]}), Colors)
    assert len(reading.complaints) == 3
    reading = understand(GOOD, Colors, lambda _: [f"wrong {number}" for number in range(30)])
    assert len(reading.complaints) == 9
    assert reading.complaints[-1] == "And 22 more like these."


@given(json_objects, st.sampled_from(["", "Here: ", "<think>a</think>", "```json\n", "{x} "]))
def test_any_object_is_found_whole(value: dict[str, Any], before: str) -> None:
    assert list(json_values(before + json.dumps(value, ensure_ascii=False)))[-1] == value


@given(json_objects, st.data())
def test_nothing_inside_half_an_object_counts(value: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps({"all": value})
    cut = data.draw(st.integers(0, len(text) - 1))
    assert list(json_values(text[:cut])) == []


@pytest.mark.parametrize("said", ['{"a": "as in {} or [1]', '{"a": "\\x {} or [1]"}'])
def test_brackets_in_a_broken_string_mean_nothing(said: str) -> None:
    assert list(json_values(said)) == []


@given(st.text(alphabet='{}[]",:a<think>/\\ \n', max_size=60))
def test_no_text_is_too_strange(text: str) -> None:
    reading = understand(text, Colors)
    assert (reading.value is None) == bool(reading.complaints)
    assert len(without_thoughts(text)) <= len(text)


def test_thoughts_in_a_phrase_stay() -> None:
    said = json.dumps({"colors": ["<think>ing</think> blue"]})
    assert understand(said, Colors).value == Colors(colors=["<think>ing</think> blue"])


# Schemas


class Part(BaseModel):
    """A part."""

    name: str = Field(default="lid", min_length=2, description="What it is.")
    kind: Literal["a", "b"] = "a"


class Whole(BaseModel):
    default: str = Field(description="A property that is called as a keyword is.")
    parts: list[Part] = Field(default_factory=list, max_length=4)
    other: Part | None = None
    first: Part = Field(default=Part(), description="A description beside a reference.")


def objects_in(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for part in schema for found in objects_in(part)]
    if not isinstance(schema, dict):
        return []
    inside = [found for part in schema.values() for found in objects_in(part)]
    return ([schema] if "properties" in schema and "type" in schema else []) + inside


def test_a_strict_schema_is_as_openai_wants_it() -> None:
    schema, strict = strict_schema(Whole.model_json_schema())
    assert strict
    assert len(objects_in(schema)) == 2
    for each in objects_in(schema):
        assert each["additionalProperties"] is False
        assert each["required"] == list(each["properties"])
    assert schema["properties"]["default"]["description"].startswith("A property")
    assert schema["properties"]["first"] == {"$ref": "#/$defs/Part"}
    assert "default" not in schema["$defs"]["Part"]["properties"]["name"]
    assert "minLength" not in json.dumps(schema)
    assert schema["properties"]["parts"]["maxItems"] == 4
    Draft202012Validator.check_schema(schema)


def test_a_mapping_with_any_keys_cannot_be_strict() -> None:
    class Loose(BaseModel):
        phrases: dict[str, list[str]]

    schema, strict = strict_schema(Loose.model_json_schema())
    assert not strict
    assert schema["properties"]["phrases"]["additionalProperties"]["type"] == "array"


def test_annotations_go_and_properties_that_look_like_them_stay() -> None:
    schema = {
        "type": "object",
        "x-class-noun": "teapot",
        "properties": {
            "x-ray": {"enum": ["x-a", {"x-b": 1}], "x-stems": ["The {class_noun}"]},
            "list": {"type": "array", "items": {"anyOf": [{"type": "string", "x-top-k": 3}]}},
        },
        "$defs": {"x-part": {"x-stems": [], "type": "string"}},
    }
    assert without_annotations(schema) == {
        "type": "object",
        "properties": {
            "x-ray": {"enum": ["x-a", {"x-b": 1}]},
            "list": {"type": "array", "items": {"anyOf": [{"type": "string"}]}},
        },
        "$defs": {"x-part": {"type": "string"}},
    }


# Forms


def test_every_rung_tells_the_model_the_schema_and_stepping_down_ends() -> None:
    schema, question = {"type": "object", "title": "xyz"}, [{"role": "user", "content": "Colors?"}]
    told = {}
    for rung in Rung:
        shape = rung.response_format(schema, "My reply!", True)
        in_words = "xyz" in str(rung.messages(question, schema))
        told[rung] = (shape and shape["type"], in_words, rung.below)
    assert told == {
        Rung.SCHEMA: ("json_schema", False, Rung.OBJECT_AND_WORDS),
        Rung.SCHEMA_AND_WORDS: ("json_schema", True, Rung.OBJECT_AND_WORDS),
        Rung.OBJECT_AND_WORDS: ("json_object", True, Rung.WORDS),
        Rung.WORDS: (None, True, None),
    }
    assert question == [{"role": "user", "content": "Colors?"}]


def test_words_go_beside_a_image() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [image]}, {"role": "assistant", "content": "Hm."}]
    sent = Rung.WORDS.messages(messages, {"type": "object"})
    assert sent[0]["content"][0] == image
    assert "JSON schema" in sent[0]["content"][1]["text"]
    assert sent[1] == messages[1]


def test_a_repair_turn_quotes_what_is_wrong() -> None:
    question = [{"role": "user", "content": "Colors?"}]
    *before, said, request = repair_turn(question, "red", ["No JSON.", "No blue."], {"title": "x"})
    assert before == question
    assert said == {"role": "assistant", "content": "red"}
    assert "- No JSON.\n- No blue." in request["content"]
    assert '{"title": "x"}' in request["content"]
