"""Counting tokens with the renderer's own tokenizer, or cautiously without one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regforge.embedded import TINYWORLD, phrase_banks
from regforge.prompts.tokens import TokenBudget, estimated_tokens, token_budget
from regforge.recipe import Render


@pytest.fixture(scope="module")
def embedded() -> TokenBudget:
    return token_budget(Render())


def test_the_embedded_pipeline_counts_its_own_tokens(embedded: TokenBudget) -> None:
    assert (embedded.limit, embedded.estimated) == (48, False)
    assert embedded.source == "the tokenizer of embedded/tinyworld"
    assert embedded.count("a photo of a dog") == 7
    assert embedded.count("") == 2
    assert embedded.fits("dog " * 46)
    assert not embedded.fits("dog " * 47)


def test_words_add_up_to_what_the_tokenizer_says_of_the_whole(embedded: TokenBudget) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINYWORLD, subfolder="tokenizer")
    banks = phrase_banks.load()
    captions = ["Ünïcödé 東京 🙂, it's 3.14 o'clock!!", "half-timbered; (very) old_house"]
    for noun in ("teapot", "dog", "person", "cake"):
        captions += phrase_banks.example_captions(banks, noun, 50, 0)
    for caption in captions:
        assert embedded.count(caption) == len(tokenizer(caption)["input_ids"]), caption


def test_near_the_limit_the_tokenizer_is_asked_about_the_whole_text() -> None:
    def joins_words(text: str) -> int:
        return 2 + len(text.replace(" ", "")) // 2

    budget = TokenBudget(20, "a test", joins_words)
    assert budget.count("aaa aaa aaa") == 2 + 3  # three words of one token each
    assert budget.count(" ".join(["aaa"] * 16)) == 2 + 24  # by words it would be 18
    assert not budget.fits(" ".join(["aaa"] * 16))


@pytest.mark.slow
def test_the_encoder_that_reads_most_decides(tmp_path: Path, embedded: TokenBudget) -> None:
    """As in Flux: CLIP's 77 tokens beside T5's 512, of which the pipeline passes some."""
    from transformers import CLIPTokenizer

    clip = CLIPTokenizer.from_pretrained(TINYWORLD / "tokenizer")
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "tokenizer_3": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    for name, limit in (("tokenizer", 77), ("tokenizer_2", 512)):
        clip.model_max_length = limit
        clip.save_pretrained(tmp_path / name)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    render = Render(model=str(tmp_path))
    assert token_budget(render).limit == 256  # what this pipeline passes by default
    assert token_budget(render, max_tokens=90).limit == 90
    for class_name, limit in (("NobodysPipeline", 512), ("FluxPipeline", 512)):
        (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": class_name}))
        assert token_budget(render).limit == limit


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("StableDiffusionPipeline", 77),
        ("QwenImagePipeline", 512),
        ("HunyuanImagePipeline", 1000),
        ("LongCatImagePipeline", 512),
        ("ErnieImagePipeline", 512),
        ("NucleusMoEImagePipeline", 1024),
        ("Lumina2Pipeline", 220),  # of 256, after the system prompt
        ("ZImagePipeline", 490),  # of 512, after the chat template
    ],
)
def test_a_tokenizer_without_a_limit_has_that_of_its_pipeline(
    kind: str, limit: int, tmp_path: Path
) -> None:
    shutil.copytree(TINYWORLD / "tokenizer", tmp_path / "tokenizer")
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 1e30}))
    index = {"_class_name": kind, "tokenizer": ["transformers", "CLIPTokenizer"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert token_budget(Render(model=str(tmp_path))).limit == limit


@pytest.mark.parametrize(
    ("render", "reason"),
    [
        ({"model": "gpt-image-1", "renderer": "hosted"}, "gpt-image-1 is hosted"),
        ({"model": "nobody/has-this-model"}, "nobody/has-this-model is not on this machine"),
        ({"model": "FOLDER"}, "no tokenizer here"),
    ],
)
def test_no_tokenizer_means_estimates(tmp_path: Path, render: dict[str, str], reason: str) -> None:
    settings = {key: value.replace("FOLDER", str(tmp_path)) for key, value in render.items()}
    budget = token_budget(Render(**settings))
    assert (budget.limit, budget.estimated) == (77, True)
    assert budget.source.startswith("an estimate (")
    assert reason in budget.source


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        ("black-forest-labs/FLUX.1-dev", 512),
        ("Qwen/Qwen-Image", 512),
        ("stabilityai/stable-diffusion-3.5-large", 256),
        ("stabilityai/stable-diffusion-xl-base-1.0", 77),
    ],
)
def test_the_name_says_how_much_a_model_reads_that_is_not_here(model: str, limit: int) -> None:
    budget = token_budget(Render(model=model), offline=True)
    assert (budget.limit, budget.estimated) == (limit, True)


def test_estimates_of_words_that_clip_has_one_token_for_are_not_far_off() -> None:
    # 19 tokens by CLIP's own tokenizer.
    thing = "small red ceramic teapot"
    caption = f"a watercolor painting of a {thing} on a kitchen table, in soft light"
    assert 19 <= estimated_tokens(caption) <= 28


@given(st.text(max_size=100))
def test_any_text_has_an_estimate(text: str) -> None:
    assert estimated_tokens(text) >= 2 + bool(text.split())
