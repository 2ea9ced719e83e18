"""Which licence follows from which renderer, and which ones the Hub knows."""

import pytest
import yaml

from regforge.files import recipes_folder
from regforge.recipe.rendering import LICENSE_IDENTIFIERS, not_an_identifier, terms_of


@pytest.mark.parametrize(
    ("model", "license_id"),
    [
        ("embedded/tinyworld", "cc-by-4.0"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "creativeml-openrail-m"),
        ("stabilityai/stable-diffusion-2-1", "openrail++"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "openrail++"),
        ("StabilityAI/Stable-Diffusion-XL-Base-1.0", "openrail++"),
        ("black-forest-labs/FLUX.1-schnell", "apache-2.0"),
        ("black-forest-labs/FLUX.1-dev", "other"),
        ("stabilityai/sdxl-turbo", "other"),
        ("stabilityai/stable-diffusion-3.5-large", "other"),
    ],
)
def test_a_known_renderer_has_a_licence(model: str, license_id: str) -> None:
    terms = terms_of(model)
    assert terms
    assert terms.license == license_id
    assert license_id in LICENSE_IDENTIFIERS
    if license_id == "other":  # one with terms of its own says which
        assert terms.name
        assert (terms.link or "").startswith("https://huggingface.co/")
        assert terms.caution
    else:
        assert terms.name is None


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
        ("qqq", None),
        ("openrail++", "right"),
    ],
)
def test_a_wrong_identifier_is_named_with_the_right_one(given: str, meant: str | None) -> None:
    problem = not_an_identifier(given)
    if meant == "right":
        assert problem is None
    else:
        assert repr(given) in (problem or "")
        assert meant is None or repr(meant) in (problem or "")


def test_the_shipped_recipes_name_what_their_renderer_asks_for() -> None:
    seen = 0
    for path in recipes_folder().glob("*.yaml"):
        data = yaml.safe_load(path.read_text())
        license_id = (data.get("dataset") or {}).get("license")
        terms = terms_of((data.get("render") or {}).get("model", "embedded/tinyworld"))
        if license_id and terms:
            seen += 1
            assert license_id == terms.license, path.name
    assert seen >= 3
