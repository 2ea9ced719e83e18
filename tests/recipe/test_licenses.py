"""Which licence follows from which renderer, and which ones the Hub knows."""

import pytest
import yaml

from regforge import resources
from regforge.recipe.licenses import IDENTIFIERS, not_an_identifier, terms_of


@pytest.mark.parametrize(
    ("model", "license_id"),
    [
        ("embedded/tinyworld", "cc-by-4.0"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m"),
        ("stabilityai/stable-diffusion-2-1", "openrail++"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "openrail++"),
        ("StabilityAI/Stable-Diffusion-XL-Base-1.0", "openrail++"),
        ("black-forest-labs/FLUX.1-schnell", "apache-2.0"),
    ],
)
def test_a_known_renderer_has_a_licence(model: str, license_id: str) -> None:
    terms = terms_of(model)
    assert terms is not None
    assert terms.license == license_id
    assert license_id in IDENTIFIERS
    assert terms.name is None


@pytest.mark.parametrize(
    "model",
    [
        "black-forest-labs/FLUX.1-dev",
        "stabilityai/sdxl-turbo",
        "stabilityai/stable-diffusion-3.5-large",
    ],
)
def test_one_with_terms_of_its_own_is_other_and_says_which(model: str) -> None:
    terms = terms_of(model)
    assert terms is not None
    assert terms.license == "other"
    assert terms.name
    assert terms.link
    assert terms.link.startswith("https://huggingface.co/")
    assert terms.caution


def test_of_an_unknown_renderer_nothing_is_claimed() -> None:
    assert terms_of("me/my-own-model") is None
    assert terms_of("/models/sdxl") is None


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("Apache 2.0", "apache-2.0"),
        ("openrail+", "openrail++"),
        ("CC-BY-4.0", "cc-by-4.0"),
        ("creativeml-openrail", "creativeml-openrail-m"),
    ],
)
def test_a_wrong_identifier_is_named_with_the_one_that_was_meant(given: str, meant: str) -> None:
    assert not_an_identifier(given) == (
        f"{given!r} is no licence identifier of the Hub, did you mean {meant!r}?"
    )


def test_a_right_one_is_right_and_a_strange_one_just_wrong() -> None:
    assert not_an_identifier("openrail++") is None
    assert not_an_identifier("qqq") == "'qqq' is no licence identifier of the Hub."


def test_the_shipped_recipes_name_what_their_renderer_asks_for() -> None:
    seen = 0
    for path in resources.recipes().glob("*.yaml"):
        data = yaml.safe_load(path.read_text())
        license_id = (data.get("dataset") or {}).get("license")
        terms = terms_of((data.get("render") or {}).get("model", "embedded/tinyworld"))
        if license_id and terms:
            seen += 1
            assert license_id == terms.license, path.name
    assert seen >= 3
