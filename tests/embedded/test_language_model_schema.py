"""Drawing replies from JSON schemas: with an engine of our own, so that no weights load."""

import itertools
import json
import random
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field

from regforge.embedded.language_model import SchemaError
from regforge.embedded.language_model.drawing import Question, draw

Schema = dict[str, Any]


class Oracle:
    """Prefers later options, remembers what it was asked, writes the word `free`."""

    def __init__(self, scores: Sequence[float] | None = None) -> None:
        self.given = scores
        self.questions: list[Question] = []
        self.written: list[tuple[Schema, str]] = []

    def scores(self, question: Question) -> Sequence[float] | None:
        self.questions.append(question)
        return self.given or [float(index) for index in range(len(question.options))]

    def write(self, schema: Schema, field: str) -> str:
        self.written.append((schema, field))
        return "free"


def reply(schema: Schema, seed: int = 0, oracle: Oracle | None = None, warmth: float = 1.0) -> Any:
    return draw(schema, oracle or Oracle(), random.Random(seed), warmth)


# A schema, and a number of different values that it certainly has.
Sized = tuple[Schema, int]

scalars = st.one_of(
    st.text(max_size=5), st.integers(-9, 9), st.booleans(), st.none(), st.floats(-2, 2, width=16)
)


@st.composite
def leaves(draw: st.DrawFn) -> Sized:
    kind = draw(st.sampled_from(["enum", "const", "boolean", "null"]))
    if kind == "enum":
        # By text, so that no two options are equal in JSON (1 and 1.0, or 0 and -0.0, are).
        options = draw(st.lists(scalars, min_size=1, max_size=6, unique_by=str))
        return {"enum": options}, len({str(v) for v in options if not isinstance(v, int | float)})
    if kind == "const":
        return {"const": draw(scalars)}, 1
    return {"type": kind}, 2 if kind == "boolean" else 1


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Sized]) -> Sized:
    items, size = draw(inner)
    schema: Schema = {"type": "array", "items": items}
    low = draw(st.integers(0, 5))
    if draw(st.booleans()):
        schema["uniqueItems"] = True
        low = min(low, size)
    schema["minItems"] = low
    if draw(st.booleans()):
        schema["maxItems"] = low + draw(st.integers(0, 4))
    return schema, 1


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Sized]) -> Sized:
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True))
    fields = {name: draw(inner) for name in names}
    required = [name for name in names if draw(st.booleans())]
    schema: Schema = {"type": "object", "required": required}
    schema["properties"] = {name: field for name, (field, _) in fields.items()}
    if draw(st.booleans()):
        schema["additionalProperties"] = False
    size = 1
    for name, (_, values) in fields.items():
        size *= max(1, values) + (name not in required)
    return schema, size


@st.composite
def optionals(draw: st.DrawFn, inner: st.SearchStrategy[Sized]) -> Sized:
    schema, size = draw(inner)
    return {"anyOf": [schema, {"type": "null"}], "title": "Maybe", "default": None}, size


sized_schemas = st.recursive(
    leaves(), lambda inner: st.one_of(arrays(inner), objects(inner), optionals(inner)), max_leaves=8
)


def with_references(schema: Schema) -> Schema:
    """The same schema with everything below a property moved to `$defs`, as pydantic does."""
    definitions: Schema = {}
    numbers = itertools.count()

    def moved(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        part = {key: [moved(p) for p in v] if key == "anyOf" else v for key, v in part.items()}
        if "items" in part:
            part["items"] = moved(part["items"])
        for name, inner in part.get("properties", {}).items():
            definition = f"{name}~/{next(numbers)}"
            definitions[definition] = moved(inner)
            pointer = definition.replace("~", "~0").replace("/", "~1")
            part["properties"] = part["properties"] | {name: {"$ref": f"#/$defs/{pointer}"}}
        return part

    return moved(schema) | {"$defs": definitions}


@settings(deadline=None, max_examples=100)
@given(sized_schemas, st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0]))
def test_every_reply_validates_and_repeats(sized: Sized, seed: int, warmth: float) -> None:
    schema = sized[0]
    value = reply(schema, seed, warmth=warmth)
    Draft202012Validator(schema).validate(value)
    assert json.dumps(reply(schema, seed, warmth=warmth)) == json.dumps(value)
    referring = with_references(schema)
    assert json.dumps(reply(referring, seed, warmth=warmth)) == json.dumps(value)


def test_best_options_are_drawn_more_often_and_the_rest_never() -> None:
    schema = {"type": "array", "minItems": 500, "items": {"enum": list("abcdefgh")}, "x-top-k": 3}
    drawn = reply(schema)
    counts = [drawn.count(letter) for letter in "abcdefgh"]
    assert counts[:5] == [0] * 5  # the oracle prefers later letters
    assert 0 < counts[5] < counts[6] < counts[7]


def test_default_top_k_is_a_quarter_and_at_least_four() -> None:
    few = reply({"type": "array", "minItems": 500, "items": {"enum": list("abcdefgh")}}, warmth=99)
    many = {"type": "array", "minItems": 999, "items": {"enum": [f"{i:02}" for i in range(80)]}}
    assert set(few) == set("efgh")
    assert set(reply(many, warmth=99)) == {f"{i:02}" for i in range(60, 80)}


def test_temperature_zero_takes_the_best() -> None:
    assert {reply({"enum": list("abc")}, seed, warmth=0) for seed in range(20)} == {"c"}


def test_choices_without_scores_are_uniform() -> None:
    class Indifferent(Oracle):
        def scores(self, question: Question) -> None:
            return None

    schema = {"type": "array", "minItems": 4000, "items": {"enum": list("abcdefgh")}}
    drawn = reply(schema, oracle=Indifferent())
    assert all(400 < drawn.count(letter) < 600 for letter in "abcdefgh")


def test_unique_arrays_of_choices_go_beyond_top_k_when_they_must() -> None:
    items = {"enum": list("abcdefgh"), "x-top-k": 2}
    drawn = reply({"type": "array", "minItems": 8, "uniqueItems": True, "items": items})
    assert sorted(drawn) == list("abcdefgh")
    pair = reply({"type": "array", "minItems": 2, "uniqueItems": True, "items": items})
    assert sorted(pair) == ["g", "h"]


def test_unique_arrays_of_objects_use_up_the_whole_space() -> None:
    item = {
        "type": "object",
        "properties": {"a": {"enum": list("uvwxyz"), "x-top-k": 1}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
    }
    drawn = reply({"type": "array", "minItems": 12, "uniqueItems": True, "items": item})
    assert len({json.dumps(each, sort_keys=True) for each in drawn}) == 12


def test_length_lies_between_the_bounds_and_reaches_both() -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}
    assert {len(reply(schema, seed)) for seed in range(40)} == {2, 3, 4}


def test_optional_fields_are_filled_and_null_is_the_last_resort() -> None:
    schema = {
        "type": "object",
        "properties": {
            "union": {
                "anyOf": [{"type": "null"}, {"type": "object", "properties": {"a": {"const": 1}}}]
            },
            "choice": {"enum": [None, "x", "y"]},
            "nothing": {"type": "null"},
        },
    }
    for seed in range(20):
        value = reply(schema, seed, warmth=99)
        assert value["union"] == {"a": 1}
        assert value["choice"] in ("x", "y")
        assert value["nothing"] is None


def test_recursive_schemas_come_to_an_end() -> None:
    tree = {
        "$ref": "#/$defs/Node",
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {
                    "color": {"enum": ["red", "blue"]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
                    "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                },
                "required": ["color", "next"],
            }
        },
    }
    value = reply(tree)
    Draft202012Validator(tree).validate(value)
    assert value["children"]
    assert len(json.dumps(value)) < 100_000


def test_annotations_reach_the_question() -> None:
    oracle = Oracle()
    colors = {"enum": ["red", "blue"], "x-stems": ["Its color, {class_noun}, is"]}
    inner = {
        "type": "object",
        "x-class-noun": "handle",
        "properties": {"material": {"enum": ["oak", "horn"]}},
    }
    schema = {
        "type": "object",
        "x-class-noun": "teapot",
        "properties": {
            "colors": {"type": "array", "minItems": 1, "items": colors},
            "part": inner,
            "style": {"x-stems": [], "enum": ["flat", "glossy"]},
        },
    }
    reply(schema, oracle=oracle)
    assert oracle.questions == [
        Question("colors", ("red", "blue"), "teapot", ("Its color, {class_noun}, is",)),
        Question("material", ("oak", "horn"), "handle", None),
        Question("style", ("flat", "glossy"), "teapot", ()),
    ]


def test_a_field_is_scored_once_for_a_long_array() -> None:
    oracle = Oracle()
    item = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}}
    assert len(reply({"type": "array", "minItems": 100, "items": item}, oracle=oracle)) == 100
    assert len(oracle.questions) == 1


def test_booleans_are_scored_only_with_stems() -> None:
    oracle = Oracle()
    stems = ["Does a {class_noun} swim?"]
    properties = {"plain": {"type": "boolean"}, "asked": {"type": "boolean", "x-stems": stems}}
    reply({"type": "object", "properties": properties}, oracle=oracle)
    assert [(q.field, q.options) for q in oracle.questions] == [("asked", ("yes", "no"))]


def test_pydantic_models_validate_their_reply() -> None:
    class Look(BaseModel):
        model_config = ConfigDict(extra="forbid")
        shape: Literal["round", "tall"]
        color: Literal["red", "blue"] | None = None
        pair: tuple[Literal["x"], bool]
        materials: set[Literal["wood", "glass", "fur"]] = Field(min_length=2)

    class Looks(BaseModel):
        looks: list[Look] = Field(min_length=3, max_length=3)

    assert len(Looks.model_validate(reply(Looks.model_json_schema())).looks) == 3


def test_only_options_that_satisfy_the_keywords_beside_them_are_drawn() -> None:
    schema = {"type": ["string", "null"], "enum": ["ab", "c", 3, None], "minLength": 2}
    assert {reply(schema, seed, warmth=99) for seed in range(20)} == {"ab"}
    overlapping = {"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}
    assert {reply(overlapping, seed, warmth=99) for seed in range(40)} == {"a", "c"}


def test_what_is_no_choice_is_written_and_brings_its_definitions() -> None:
    oracle = Oracle()
    name = {"type": "string", "maxLength": 9}
    schema = {
        "type": "object",
        "properties": {"name": {"$ref": "#/$defs/Name"}, "color": {"enum": ["red"]}},
        "$defs": {"Name": name},
    }
    assert reply(schema, oracle=oracle) == {"name": "free", "color": "red"}
    assert oracle.written == [(name | {"$defs": {"Name": name}}, "name")]


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        (
            {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 3},
            "3 items",
        ),
        ({"enum": ["a"], "type": "integer"}, "none of the options"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "forbids"),
        ({"$ref": "#/$defs/Gone"}, "points to nothing"),
        ({"$ref": "https://example.com/schema"}, "points to nothing"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"type": "colour"}, "no JSON schema"),
        ({"enum": ["a", "b"], "x-stems": "The {class_noun} is"}, "x-stems"),
        ({"enum": ["a", "b"], "x-top-k": 0}, "x-top-k"),
        ({"enum": ["a", "b"], "x-class-noun": " "}, "x-class-noun"),
        ({"oneOf": [{"type": "array", "items": {"const": 1}}] * 2}, "not exclusive"),
    ],
)
def test_impossible_schemas_are_refused_with_a_reason(schema: Schema, complaint: str) -> None:
    with pytest.raises(SchemaError, match=complaint):
        reply(schema)
