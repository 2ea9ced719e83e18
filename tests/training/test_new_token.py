"""A new token: what of it is trained and what is not, its file, and who reads that file."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from images import drawing, flow_models
from training_runs import QUIET, SUBJECTS, TOKEN, build, opened, recipe, renamed

from regforge.images.encoding import encode
from regforge.images.loras import clip_encoders, content_of, load_embedding, put_on
from regforge.prompts.tokens import pipeline_budget
from regforge.recipe import TrainingRecipe
from regforge.training import train
from regforge.training.batches import FamilyError
from regforge.training.examples import Examples
from regforge.training.families import find_base_model
from regforge.training.families.base import Family
from regforge.training.loop import Loop, Precision
from regforge.training.saving import save_result
from regforge.training.weights import attach

KINDS = ("sd", "sdxl", "sd3", "flux", "hidream")
T5 = ("sd3", "flux", "hidream")
PROMPT = f"a photo of a {TOKEN} cat on a beach"


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    top = tmp_path_factory.mktemp("bases")
    built: dict[str, str] = {}

    def base(kind: str) -> str:
        if kind not in built:
            builders = {"flux": drawing.flux, "hidream": partial(flow_models.build, "hidream")}
            built[kind] = builders.get(kind, partial(build, kind))(top / kind)
            for path in (top / kind).glob(
                "text_encoder*/config.json"
            ):  # as SDXL's and SD3's have it
                content = json.loads(path.read_text())
                path.write_text(json.dumps(content | {"eos_token_id": 2}))
        return built[kind]

    return base


def with_token(base: str, dtype: torch.dtype = torch.float32, **token: Any) -> Family:
    subject = {"identifier": {"new": TOKEN, **token}}
    return opened(base, dtype, subject=subject)


def tables(family: Family) -> dict[str, torch.Tensor]:
    """The rows of the text encoders' vocabularies."""
    encoders = clip_encoders(family.pipeline).items()
    return {name: encoder.get_input_embeddings().weight.detach() for name, (_, encoder) in encoders}


def moved(family: Family) -> None:
    """Give the token other numbers, each vector its own."""
    assert family.token is not None
    with torch.no_grad():
        for rows in family.token.parameters.values():
            rows += torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))


def states(family: Family, caption: str = PROMPT) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        (found,) = family.encode_captions([caption])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_the_mean_of_words(base_of: Callable[[str], str], kind: str) -> None:
    plain = opened(base_of(kind))
    vectors = 1 if kind in ("sd3", "hidream") else 3
    family = with_token(base_of(kind), init="red teapot", vectors=vectors)
    assert family.token is not None
    assert list(family.token.parameters) == list(clip_encoders(family.pipeline))
    for name, (tokenizer, encoder) in clip_encoders(plain.pipeline).items():
        ids = tokenizer("red teapot", add_special_tokens=False).input_ids
        assert len(ids) > 1
        mean = encoder.get_input_embeddings().weight[ids].mean(0)
        rows = family.token.parameters[name]
        assert rows.shape == (vectors, len(mean))
        assert all(torch.allclose(row, mean) for row in rows)
    noun, itself = with_token(base_of(kind)), opened(base_of(kind))
    name = "pooled_prompt_embeds" if kind in T5 else "prompt_embeds"  # T5 reads its name
    one, other = states(noun, f"a {TOKEN}"), states(itself, "a cat")  # cat is one token
    assert torch.allclose(one[name], other[name], atol=1e-6)
    assert torch.equal(*(states(each, "a cat")[name] for each in (noun, itself)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("method", ["embedding", "lora", "text", "full"])
def test_nothing_but_its_rows_moves(
    base_of: Callable[[str], str], tmp_path: Path, kind: str, method: str
) -> None:
    """Of the vocabularies, and with `embedding` of all; where no caption holds it, nor do they."""
    subject = renamed(tmp_path / "cats")
    for dropout in (1.0, 0.0):
        each = recipe(
            base_model=base_of(kind),
            subject=subject,
            method={"text_encoder": True} if method == "text" else {"kind": method},
            data={"resolution": 32, "caption_dropout": dropout},
            optimizer={"steps": 3, "weight_decay": 0.9, "lr": 0.01},
        )
        weights = torch.float32 if method == "full" else torch.bfloat16
        family = opened(base_of(kind), weights, subject=subject)
        assert family.token is not None
        examples = Examples(each, family, device="cpu", reporter=QUIET)
        examples.prepare()
        trainable = attach(family, each.method)
        precision = Precision(weights, torch.bfloat16)
        loop = Loop(
            each, family, trainable, examples, device=torch.device("cpu"), precision=precision
        )
        before = {name: value.clone() for name, value in trainable.state_dict().items()}
        vocabularies = {name: table.clone() for name, table in tables(family).items()}
        denoiser = [p.detach().clone() for p in family.denoiser.parameters()]
        for step in range(each.optimizer.steps):
            assert torch.isfinite(loop.step(step)[0]).all()
        for name, value in trainable.state_dict().items():
            if name.endswith(".new_token"):
                assert value.dtype is torch.float32
                # Without a gradient not even weight decay moves it.
                assert torch.equal(value, before[name]) is (dropout == 1.0)
        for name, table in tables(family).items():
            assert torch.equal(table, vocabularies[name])
        if method == "embedding":
            assert set(trainable.parameters) == {f"{name}.new_token" for name in vocabularies}
            assert all(map(torch.equal, denoiser, family.denoiser.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_knows_it_as_it_began(base_of: Callable[[str], str], kind: str) -> None:
    family = with_token(base_of(kind))
    trainable = attach(family, recipe().method)
    before = states(family)
    moved(family)
    now = states(family)
    with trainable.teacher():
        taught = states(family)
    for name, value in before.items():
        assert torch.equal(taught[name], value)
    name = "pooled_prompt_embeds" if kind in T5 else "prompt_embeds"
    assert (now[name] - before[name]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_a_caption_is_its_end(base_of: Callable[[str], str], kind: str) -> None:
    """Not the token, whose number is the highest: what comes behind it counts for the pooled."""
    family = with_token(base_of(kind))
    one, other = (states(family, f"a {TOKEN} cat {place}") for place in ("on a beach", "at night"))
    for name, value in one.items():
        assert not torch.allclose(value, other[name])


# ----------------------------------------------------------------------------------- its file


def code_of(card: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(block)


@pytest.mark.parametrize(
    ("kind", "vectors"),
    [("sd", 1), ("sd", 2), ("sdxl", 3), ("sd3", 1), ("flux", 2), ("hidream", 1)],
)
def test_the_card_loads_it_with_diffusers(
    base_of: Callable[[str], str], tmp_path: Path, kind: str, vectors: int
) -> None:
    """The code of the card, as it stands: the text states are those of the trained pipeline."""
    from diffusers import DiffusionPipeline

    from regforge.training.card import write_card

    family = with_token(base_of(kind), vectors=vectors)
    trainable = attach(family, recipe(method={"kind": "embedding"}).method)
    moved(family)
    path = save_result(family, trainable, tmp_path)
    assert path == tmp_path / "embedding" / "my-cat.safetensors"
    each = recipe(
        base_model=base_of(kind),
        subject={"identifier": {"new": TOKEN, "vectors": vectors}},
        method={"kind": "embedding"},
    )
    card = write_card(each, tmp_path, family=family.name).read_text()
    code, _, call = code_of(card).rpartition("image = ")
    assert f'pipeline("a photo of a {TOKEN} cat")' in call
    code = code.replace("path/to/this/folder", str(tmp_path))
    code = re.sub(r'from_pretrained\(".*?"\)', f"from_pretrained({base_of(kind)!r})", code)
    found: dict[str, Any] = {}
    exec(code, found)
    pipeline = found["pipeline"]
    assert isinstance(pipeline, DiffusionPipeline)

    with torch.no_grad():
        (theirs,) = encode(pipeline, [PROMPT], torch.device("cpu"))
    ours = states(family)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_put_on_and_taken_off_without_trace(
    base_of: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    family, plain = with_token(base_of(kind)), opened(base_of(kind))
    moved(family)
    assert family.token is not None
    file = tmp_path / "my-cat.safetensors"
    file.write_bytes(family.token.file())
    configs = [encoder.config.to_dict() for _, encoder in clip_encoders(plain.pipeline).values()]
    before, tokens = states(plain), pipeline_budget(plain.pipeline).count(PROMPT)
    take_off = load_embedding(plain.pipeline, file)
    for name, value in states(family).items():
        assert torch.equal(states(plain)[name], value)
    if kind not in T5:  # which reads the most, and its name
        assert pipeline_budget(plain.pipeline).count(PROMPT) == 2 + len(PROMPT.split())
    take_off()
    for name, value in before.items():
        assert torch.equal(states(plain)[name], value)
    assert pipeline_budget(plain.pipeline).count(PROMPT) == tokens
    after = [encoder.config.to_dict() for _, encoder in clip_encoders(plain.pipeline).values()]
    assert after == configs


def test_every_vector_is_a_token_of_the_prompt(base_of: Callable[[str], str]) -> None:
    family = with_token(base_of("sdxl"), vectors=3)
    assert pipeline_budget(family.pipeline).count(PROMPT) == 2 + len(PROMPT.split()) + 2


def test_files_of_other_models_are_refused(base_of: Callable[[str], str], tmp_path: Path) -> None:
    from regforge.images.loras import EmbeddingError

    plain = opened(base_of("sd")).pipeline
    file = tmp_path / "x.safetensors"
    for content, words in (
        (content_of(TOKEN, {"text_encoder": torch.zeros(1, 5)}), "width 5"),
        (content_of(TOKEN, {"a": torch.zeros(1, 16), "b": torch.zeros(1, 16)}), "2 CLIP"),
        (b"nothing", "cannot be read"),
    ):
        file.write_bytes(content)
        with pytest.raises(EmbeddingError, match=words):
            load_embedding(plain, file)
    with pytest.raises(EmbeddingError, match="cat</w> already"):
        put_on(plain, "cat</w>", {"text_encoder": torch.zeros(1, 16)})


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_whole_pipeline_has_it_in_itself(
    base_of: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    from diffusers import DiffusionPipeline

    family = with_token(base_of(kind), vectors=2)
    trainable = attach(family, recipe(method={"kind": "full", "text_encoder": kind == "sd"}).method)
    before = {name: table.clone() for name, table in tables(family).items()}
    moved(family)
    path = save_result(family, trainable, tmp_path)
    assert path == tmp_path / "model"
    for name, table in tables(family).items():
        assert torch.equal(table, before[name])
    pipeline = DiffusionPipeline.from_pretrained(path)
    again = type(family)(pipeline, path, torch.device("cpu"), recipe())
    for name, value in states(family).items():
        assert torch.allclose(states(again)[name], value, atol=1e-6)


# ----------------------------------------------------------------------------------- refusals


def test_what_cannot_have_one_is_refused_before_anything_is_loaded(
    base_of: Callable[[str], str], tmp_path: Path
) -> None:
    def asked(base: str, **token: Any) -> TrainingRecipe:
        return recipe(base_model=base, subject={"identifier": {"new": TOKEN, **token}})

    with pytest.raises(FamilyError, match="vectors: 1"):
        find_base_model(asked(base_of("sd3"), vectors=2))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline"}))
    with pytest.raises(FamilyError, match="no CLIP text encoder"):
        find_base_model(asked(str(tmp_path)))


@pytest.mark.slow
def test_a_run_without_a_lora(tmp_path: Path) -> None:
    """`method.kind: embedding`, and what a snapshot of it is."""
    each = recipe(
        subject=renamed(tmp_path / "cats"),
        regularization={"dataset": str(SUBJECTS / "dog")},  # no caption there holds it: not read
        method={"kind": "embedding"},
        checkpoint={"snapshots": [2]},
    )
    made = train(each, tmp_path / "run", reporter=QUIET)
    assert made.weights == tmp_path / "run" / "embedding" / "my-cat.safetensors"
    assert made.prior_loss is None
    assert not (tmp_path / "run" / "lora").exists()
    snapshot = tmp_path / "run" / "snapshots" / "step-000002" / "embedding" / "my-cat.safetensors"
    assert 0 < len(snapshot.read_bytes()) == len(made.weights.read_bytes())
    assert snapshot.read_bytes() != made.weights.read_bytes()
