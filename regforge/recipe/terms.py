"""Licences: of the models that draw, and the identifiers that the Hub knows.

A dataset of generated images is under the terms of the model that drew them. Only models whose own
card was looked at have terms here; of any other, the maker of the dataset has to know.
"""

from __future__ import annotations

from dataclasses import dataclass

from regforge.words import did_you_mean

OVERVIEW = "https://huggingface.co/docs/hub/repositories-licenses"

# The table on that page: huggingface/hub-docs, docs/hub/repositories-licenses.md at 242f4a1.
IDENTIFIERS = frozenset(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research "
    "intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 "
    "openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr "
    "deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 "
    "llama3.3 llama4 grok2-community gemma unknown other".split()
)


@dataclass(frozen=True)
class Terms:
    """The licence of a rendering model, as its card has it.

    Attributes:
        license: The Hub's identifier.
        name: Of a licence that the Hub has none for (`other`).
        link: Where its text stands.
        caution: What somebody who shares or trains on its images should know.
    """

    license: str
    name: str | None = None
    link: str | None = None
    caution: str | None = None


_SD1 = Terms("creativeml-openrail-m")
_RAIL = Terms("openrail++")


def _on_hub(repository: str, name: str, caution: str) -> Terms:
    link = f"https://huggingface.co/{repository}/blob/main/LICENSE.md"
    return Terms("other", name, link, caution)


def _turbo(repository: str) -> Terms:
    return _on_hub(repository, "sai-nc-community", "It limits commercial use.")


def _sd3(repository: str) -> Terms:
    caution = "It limits commercial use, and what models may be trained on the images."
    return _on_hub(repository, "stabilityai-ai-community", caution)


# The front matter of each model's own card, https://huggingface.co/<repository>.
_KNOWN = {
    # NOTICE: it learned from drawings under Apache-2.0, MIT and CC BY 4.0. Its images come close
    # enough to them that the last of these is kept: it asks for attribution, which the card gives.
    "embedded/tinyworld": Terms("cc-by-4.0"),
    "CompVis/stable-diffusion-v1-4": _SD1,
    "runwayml/stable-diffusion-v1-5": _SD1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD1,
    "stabilityai/stable-diffusion-2": _RAIL,
    "stabilityai/stable-diffusion-2-base": _RAIL,
    "stabilityai/stable-diffusion-2-1": _RAIL,
    "stabilityai/stable-diffusion-2-1-base": _RAIL,
    "stabilityai/stable-diffusion-xl-base-1.0": _RAIL,
    "PixArt-alpha/PixArt-XL-2-1024-MS": _RAIL,
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": _RAIL,
    "stabilityai/sd-turbo": _turbo("stabilityai/sd-turbo"),
    "stabilityai/sdxl-turbo": _turbo("stabilityai/sdxl-turbo"),
    "stabilityai/stable-diffusion-3-medium-diffusers": _sd3(
        "stabilityai/stable-diffusion-3-medium"
    ),
    "stabilityai/stable-diffusion-3.5-medium": _sd3("stabilityai/stable-diffusion-3.5-medium"),
    "stabilityai/stable-diffusion-3.5-large": _sd3("stabilityai/stable-diffusion-3.5-large"),
    "stabilityai/stable-diffusion-3.5-large-turbo": _sd3(
        "stabilityai/stable-diffusion-3.5-large-turbo"
    ),
    "black-forest-labs/FLUX.1-schnell": Terms("apache-2.0"),
    "black-forest-labs/FLUX.1-dev": _on_hub(
        "black-forest-labs/FLUX.1-dev",
        "flux-1-dev-non-commercial-license",
        "Its images may not be used to train a model that competes with FLUX.1 [dev].",
    ),
}
_BY_LOWER_CASE = {name.lower(): terms for name, terms in _KNOWN.items()}


def terms_of(model: str) -> Terms | None:
    """The licence of a rendering model; None if it is not known here.

    Args:
        model: As in `render.model`.
    """
    return _BY_LOWER_CASE.get(model.lower())


def not_an_identifier(license_id: str) -> str | None:
    """What is wrong with a licence, in one sentence; None if the Hub knows it."""
    if license_id in IDENTIFIERS:
        return None
    return (
        f"{license_id!r} is no licence identifier of the Hub."
        f"{did_you_mean(license_id, sorted(IDENTIFIERS))}"
    )
