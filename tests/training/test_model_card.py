"""The card of a trained model says what was trained, and nobody's words become markup."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_runs import front

from regforge.recipe.training import TrainingRecipe
from regforge.training.card import images_of, model_card, write_card

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def recipe(**more: Any) -> TrainingRecipe:
    subject = {"images": "photos", "class_noun": "teapot"} | more.pop("subject", {})
    return TrainingRecipe.model_validate(
        {"name": "pot", "base_model": SDXL, "subject": subject} | more
    )


def test_the_front_matter_is_what_the_hub_reads() -> None:
    prior = {"dataset": "me/teapot-reg", "revision": "v1"}
    card = model_card(
        recipe(regularization=prior), images=[("a sks pot", "images/01.webp")], family="sdxl"
    )
    values = front(card)
    assert values["base_model"] == SDXL
    assert values["license"] == "openrail++"
    assert values["datasets"] == ["me/teapot-reg"]
    assert values["instance_prompt"] == "a photo of a sks teapot"
    assert values["base_model_relation"] == "adapter"
    assert values["widget"] == [{"text": "a sks pot", "output": {"url": "images/01.webp"}}]
    assert {"lora", "text-to-image", "template:sd-lora", "stable-diffusion-xl"} <= set(
        values["tags"]
    )


def test_images_are_of_validation_prompts_with_the_subject_in_them(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        (tmp_path / f"images/0{number}.webp").touch()
    told = recipe(validation={"prompts": ["a {} on the moon", "a teapot"]})
    assert [text for text, _ in images_of(told, tmp_path)] == [
        "a sks teapot on the moon",
        "a teapot",
    ]
    owl = recipe(subject={"class_noun": "owl", "identifier": "ohwx"})
    texts = [text for text, _ in images_of(owl, tmp_path)]
    assert texts == ["a photo of an ohwx owl", "an ohwx owl on a beach"]


def test_on_the_hub_it_lies_at_the_top() -> None:
    lora = model_card(recipe(), repo_id="me/pot", other="pot-kohya.safetensors")
    assert '"me/pot", weight_name="pytorch_lora_weights.safetensors"' in lora
    assert "path/to/this/folder" not in lora
    full = model_card(recipe(method={"kind": "full"}), repo_id="me/pot")
    assert 'from_pretrained("me/pot")' in full
    assert front(full)["base_model_relation"] == "finetune"


def test_the_licence_is_the_base_model_s_unless_somebody_names_another() -> None:
    other = {"base_model": "stabilityai/stable-diffusion-3.5-medium"}
    values = front(model_card(recipe(**other)))
    assert values["license"] == "other"
    assert values["license_name"] == "stabilityai-ai-community"
    assert "license_link" in values
    named = model_card(
        recipe(**other, hub={"license": "mit"}), existing=model_card(recipe(**other))
    )
    assert front(named)["license"] == "mit"
    assert "license_name" not in front(named)
    assert "that of the base model" not in named
    mine = {"base_model": "me/unknown", "hub": {"license": "other"}}
    said = "---\nlicense: other\nlicense_name: mine\nlicense_link: https://x.org\n---\n"
    values = front(model_card(recipe(**mine), existing=said))
    assert (values["license_name"], values["license_link"]) == ("mine", "https://x.org")


def test_the_recipe_is_told() -> None:
    card = model_card(
        recipe(
            method={"rank": 8, "dora": True},
            regularization={"dataset": "me/teapot-reg", "target": "teacher"},
            optimizer={"min_snr_gamma": 5},
        ),
        base_revision="b" * 40,
        dataset_revision="d" * 40,
    )
    for row in (
        f"| its revision | {'b' * 40} |",
        "| trained | LoRA, rank 8, alpha 8, dora |",
        "| regularization dataset | me/teapot-reg |",
        f"| revision of the dataset | {'d' * 40} |",
        "| what they teach | what the base model predicts for them |",
        "| min-SNR gamma | 5 |",
    ):
        assert row in card


@pytest.mark.parametrize("prior", [{}, {"dataset": "me/teapot-reg", "prior_weight": 0}])
def test_without_regularization_it_says_so(prior: dict[str, Any]) -> None:
    card = model_card(recipe(regularization=prior))
    assert "without a regularization dataset" in card
    assert "datasets" not in front(card)
    assert "prior weight" not in card


def test_files_of_ones_own_are_no_repositories_and_lie_nobody_knows_where(
    tmp_path: Path,
) -> None:
    card = model_card(recipe(regularization={"dataset": "recipes/reg.yaml"}))
    assert "datasets" not in front(card)
    assert "| regularization dataset | recipes/reg.yaml |" in card
    card = model_card(
        recipe(
            base_model=str(tmp_path / "secret" / "my-model"),
            regularization={"dataset": str(tmp_path / "secret" / "my-reg")},
        )
    )
    assert "secret" not in card
    assert "my-model" in card
    assert "my-reg" in card
    assert not {"base_model", "license", "datasets"} & set(front(card))


NASTY = st.text(min_size=1, max_size=40).filter(str.strip)


@given(NASTY, NASTY)
def test_words_stay_words(noun: str, identifier: str) -> None:
    noun, identifier = f"x<b>`{{{{{noun}", f"sks{identifier}"[:40]
    made = recipe(subject={"class_noun": noun, "identifier": identifier})
    card = model_card(made, other="lora/pot-kohya.safetensors")
    values = front(card)
    # What ends like a plural takes no article.
    subject = f"{identifier} {noun}"
    assert values["instance_prompt"] in (f"a photo of a {subject}", f"a photo of {subject}")
    body = card.partition("<!-- regforge:begin -->")[2]
    assert "<b>" not in body
    assert "{{" not in body
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)
    assert code is not None
    ast.parse(code[1])


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("base", [SDXL, "embedded/tinyworld"])
def test_the_code_says_how_to_load_it(kind: str, base: str) -> None:
    card = model_card(recipe(base_model=base, method={"kind": kind}))
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    ast.parse(code[1])
    assert ("load_lora_weights" in code[1]) is (kind == "lora")
    assert ("regforge.embedded" in code[1]) is (kind == "lora" and base != SDXL)


def test_it_is_about_what_lies_in_the_folder_and_keeps_words_of_others(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "pot-kohya.safetensors").write_bytes(b"")
    path = write_card(recipe(), tmp_path)
    first = path.read_text(encoding="utf-8")
    assert "lora/pot-kohya.safetensors" in first
    assert "samples.webp" not in first
    (tmp_path / "samples.webp").write_bytes(b"")
    mine = first.replace("license: openrail++", "license: openrail++\nlanguage: fr")
    path.write_text(f"{mine}\nMy own words.\n", encoding="utf-8")
    second = write_card(recipe(), tmp_path).read_text(encoding="utf-8")
    assert second.endswith("\nMy own words.\n")
    assert front(second)["language"] == "fr"
    assert "samples.webp" in second
    assert write_card(recipe(), tmp_path).read_text(encoding="utf-8") == second
