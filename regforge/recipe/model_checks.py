"""What can be wrong with single things that recipes name: nouns, photos, datasets, models.

Each finding names the keys it is about, so that it can be left out where one of them is wrong in
itself. Knows nothing of YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from regforge.embedded import EMBEDDED_FOLDERS, load_vocabulary, phrase_banks
from regforge.files import expanded, read_text
from regforge.hub.errors import HubAddress
from regforge.recipe.named_files import (
    LEADS_OUT,
    MODEL_INDEX,
    PICKLES,
    LoraError,
    is_file,
    is_folder,
    lora_header,
    lora_in,
    photos_in,
    phrases_in,
    pipeline_class,
    require_lora,
    strays_in,
    tensor_shapes,
)
from regforge.recipe.phrases import knows_word, noun_fault
from regforge.recipe.pipelines import CACHED, TRAINABLE, class_here, folder_here, read_json
from regforge.recipe.problems import Location, shown
from regforge.recipe.rendering import Render
from regforge.recipe.sections import RARE
from regforge.recipe.single_files import SingleFileError, names_file, single_file
from regforge.words import has_words, without_words

_EMBEDDED: dict[Location, str] = {
    ("render", "model"): "embedded/tinyworld",
    ("prompts", "llm", "model"): "embedded/smollm2-135m",
    ("curate", "alignment", "model"): "embedded/judge",
}

# Words that a model knows well: as an identifier they drag their meaning along.
_ORDINARY = frozenset(
    "a an the my your our his her this that one new old it thing object subject item person man "
    "woman girl boy pet special favorite custom token test example photo picture image red green "
    "blue black white small large".split()
)
# Models that only APIs have, by the last part of their names.
_OF_AN_API = re.compile(r"(?:^|/)(?:gpt-image|chatgpt-image|dall-e|imagen-\d)[^/]*$")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong.

    Attributes:
        location: The key to point at.
        message: What is wrong with it.
        about: Other keys that the finding depends on.
    """

    location: Location
    message: str
    about: tuple[Location, ...] = ()


# ----------------------------------------------------------------------------------------- words


def plain_line(text: str, at: Location) -> Iterator[Finding]:
    """What is wrong with a text that goes into captions."""
    if not text.strip():
        yield Finding(at, "must not be blank")
    elif not text.isprintable():
        yield Finding(at, "must be one line of plain text")


def class_noun(noun: str, at: Location) -> Iterator[Finding]:
    """What is wrong with a class noun."""
    bad = list(plain_line(noun, at))
    if not bad and (fault := noun_fault(noun)):
        bad = [Finding(at, fault)]
    yield from bad


def in_noun(identifier: str, noun: str) -> str:
    """What to say of an identifier that stands in the class noun: "sks" in "sks cat"."""
    rest = without_words(noun, identifier)
    rare = rest and not knows_word(identifier)
    advice = f"take it out there: {rest!r}" if rare else f"choose a rare token: {RARE}"
    return f"is part of the class noun {noun!r}; {advice}"


def ordinary_identifier(identifier: str) -> Iterator[str]:
    """What to say of an identifier that models know well."""
    word, banks = identifier.strip().lower(), phrase_banks.load()
    if word in _ORDINARY or any(word in banks.class_nouns(n) for n in banks.super_categories):
        yield (
            f"subject.identifier: {identifier!r} is an ordinary word, and models already know "
            f"what it means. A rare token such as {RARE!r} learns faster and spoils less."
        )


def known_identifier(identifier: str, model: str) -> Iterator[str]:
    """What a model is known to make of an identifier that is no ordinary word."""
    if identifier.strip().lower() == "sks" and not is_embedded(model):
        yield (
            f"subject.identifier: 'sks' is a rifle to Stable Diffusion. {RARE!r} is no word, and a "
            "new token has no past: {new: <my-...>}."
        )


def not_drawable(model: str, noun: str, key: str) -> Iterator[str]:
    """What to say of a class noun that the embedded pipeline cannot draw; `key` names the model."""
    if is_embedded(model) and not drawable(noun):
        yield (
            f"{model} has never seen {phrase_banks.with_article(noun)}: it draws a small world of "
            f"stickers. Name another {key} for real images."
        )


def drawable(noun: str) -> bool:
    """Whether the embedded pipeline can draw it."""
    return any(has_words(noun, known) for known in load_vocabulary()["class_noun"])


def is_embedded(model: str) -> bool:
    """Whether a model's name is one of those that travel with regforge."""
    return model.startswith("embedded/")


def credentials_in(address: str) -> bool | None:
    """Whether a URL holds a password or a key; None if it is no URL of a server."""
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    return "@" in parts.netloc or bool(re.search(r"key|token|secret|password", parts.query, re.I))


def multiple_of_8(pixels: int | None, at: Location) -> Iterator[Finding]:
    """What is wrong with a side of an image."""
    if pixels is not None and pixels % 8:
        lower = pixels - pixels % 8
        message = f"must be a multiple of 8, such as {lower} or {lower + 8}, not {pixels}"
        yield Finding(at, message)


# ----------------------------------------------------------------------------------------- files


def photo_folder(folder: Path, at: Location) -> Iterator[Finding]:
    """What is wrong with a folder that should hold the photos of the subject."""
    if not is_folder(folder):
        yield Finding(at, f"there is no folder {folder}")
        return
    try:
        strays = strays_in(folder)
        yield from (Finding(at, f"{path} {LEADS_OUT}") for path in strays)
        if not strays and not photos_in(folder):
            yield Finding(at, f"there are no photos in {folder} (JPEG, PNG, WebP)")
    except OSError as error:
        yield Finding(at, f"{folder} cannot be read: {error.strerror}")


def text_file(path: Path, at: Location) -> Iterator[Finding]:
    """What is wrong with a file of phrases."""
    try:
        if not phrases_in(path):
            yield Finding(at, f"{path} has no phrases; write one a line")
    except FileNotFoundError:
        yield Finding(at, f"there is no file {path}")
    except UnicodeDecodeError:
        yield Finding(at, f"{path} is not UTF-8 text")
    except OSError as error:
        yield Finding(at, f"{path} cannot be read: {error.strerror}")


def dataset_revision(dataset: str, revision: str | None, section: Location) -> Iterator[Finding]:
    """What is wrong with the revision of a dataset, named in a section of the recipe."""
    address = HubAddress.parse(dataset, dataset=True)
    at, about = (*section, "revision"), ((*section, "dataset"),)
    if revision is not None and address is None:
        yield Finding(at, "goes with a dataset of the Hub alone: user/name", about)
    elif revision is not None and address and address.revision not in (None, revision):
        yield Finding(at, f"the dataset's name says {shown(address.revision)} already", about)


# ---------------------------------------------------------------------------------------- models


def embedded_or_named(name: str, at: Location, known: str | None = None) -> Iterator[Finding]:
    """What is wrong with the name of a model, whatever kind it is of."""
    known = known or _EMBEDDED.get(at)
    if is_embedded(name) and name != known:
        yield Finding(at, f"there is no {name!r}" + (f", only '{known}'" if known else ""))
    elif not name.strip():
        yield Finding(at, "must not be blank")


def quantized_file(
    model: str, quantize: str | None, at: Location, model_at: Location
) -> Iterator[Finding]:
    """What is wrong with fewer bits for a model that is a file."""
    if quantize is not None and model.lower().endswith(".gguf"):
        yield Finding(at, "is for other models: a .gguf is quantized already", (model_at,))
    elif quantize == "nf4" and names_file(model):
        message = "diffusers does not quantize what it reads from a file: int8, or a folder"
        yield Finding(at, message, (model_at,))


def single_model(name: str, at: Location) -> Iterator[Finding]:
    """What is wrong with a model that is no pipeline: an encoder, an autoencoder."""
    yield from embedded_or_named(name, at)
    if is_embedded(name) or not name.strip():
        return
    path = expanded(name)
    if is_folder(path):
        if not is_file(path / "config.json"):
            yield Finding(at, f"{name} holds no model: it has no config.json")
    elif is_file(path) and at[-1] == "vae":
        yield from _autoencoder(path, at)
    elif _names_path(name):
        yield Finding(at, f"there is no folder {name}")


def _autoencoder(path: Path, at: Location) -> Iterator[Finding]:
    try:
        if path.suffix.lower() != ".safetensors":
            yield Finding(at, f"{path} is no .safetensors file")
        elif not any("decoder.conv_in." in name for name in lora_header(path)[0]):
            yield Finding(at, f"{path} is no autoencoder")
    except LoraError as error:
        yield Finding(at, error.message.rstrip("."))


def lora(name: str, at: Location, render: Render) -> Iterator[Finding]:
    """What is wrong with a LoRA, and with laying it over the model."""
    path = expanded(name)
    try:
        file = lora_in(path) if is_folder(path) else path
        if file is not None and is_file(file):
            require_lora(file)
            yield from _misfit(file, at, render)
        elif is_folder(path):
            yield Finding(at, f"{name} holds no .safetensors file")
        elif _names_path(name) or not name.strip():
            yield Finding(at, f"there is no LoRA {name}")
    except LoraError as error:
        yield Finding(at, error.message.rstrip("."))


_OF_UNETS = re.compile(r"(down|up|input|output)_blocks[._]|mid(dle)?_block[._]")
_OF_TRANSFORMERS = re.compile(r"(double|single|joint|transformer)_blocks[._]|(^|[._])layers[._]")
_READS_CAPTIONS = re.compile(r"attn2[._]to_k.*lora[._](A|down)")
_OF_TEXT_ENCODERS = ("text_encoder", "lora_te")


def _misfit(file: Path, at: Location, render: Render) -> Iterator[Finding]:
    """What headers tell of a LoRA that is for another kind of model; not all that is wrong."""
    model, about = render.model, (("render", "model"),)
    kind = class_here(model, render.revision)
    shapes = tensor_shapes(file)
    layers = [name for name in shapes if not name.startswith(_OF_TEXT_ENCODERS)]
    of_unets = any(map(_OF_UNETS.search, layers))
    if kind not in TRAINABLE or not (of_unets or any(map(_OF_TRANSFORMERS.search, layers))):
        return
    if of_unets != (kind in CACHED):
        what = "a UNet, as Stable Diffusion 1.x, 2.x and XL have," if of_unets else "a transformer"
        yield Finding(at, f"{file} is a LoRA for {what} and {model} is a {kind}", about)
        return
    folder = folder_here(model, render.revision, render.config)
    width = read_json(str(folder), "unet/config.json").get("cross_attention_dim")
    read = {shapes[name][1] for name in layers if _READS_CAPTIONS.search(name)}
    if isinstance(width, int) and read - {width}:
        message = (
            f"{file} is a LoRA for another kind of model: it reads captions of width "
            f"{min(read - {width})}, and {model} has {width}"
        )
        yield Finding(at, message, about)


def pipeline(
    model: str,
    variant: str | None,
    at: Location,
    variant_at: Location,
    given: Sequence[str] = (),
    config: str | None = None,
) -> Iterator[Finding]:
    """What is wrong with a model that images are drawn with, as far as this machine knows.

    Args:
        model: As the recipe names it: a folder, a repository of the Hub, or the embedded one.
        variant: Of its weights.
        at: The key that names the model.
        variant_at: The key that names the variant.
        given: Parts that come from elsewhere, such as `vae`.
        config: What describes a single file.
    """
    bad = list(embedded_or_named(model, at, _EMBEDDED[("render", "model")]))
    yield from bad
    folder = EMBEDDED_FOLDERS.get(model) or expanded(model)
    if bad:
        return
    if names_file(model):
        yield from _single_file(model, config, at)
        return
    if config is not None:
        yield Finding((*at[:-1], "config"), "goes with a model that is a single file", (at,))
    if not is_folder(folder):
        if _OF_AN_API.search(model):
            advice = "; for an image API write `renderer: hosted` too" if "render" in at else ""
            yield Finding(at, f"{model} has no weights to download{advice}")
        elif _names_path(model):
            yield Finding(at, f"there is no folder {model}; a model of the Hub is owner/name")
    elif not is_file(folder / MODEL_INDEX):
        yield Finding(at, f"{model} has no {MODEL_INDEX}, so it is no diffusers pipeline")
    elif variant is not None and not _has_variant(folder, variant):
        yield Finding(variant_at, f"{model} has no weights of the variant {variant!r}", (at,))
    elif fault := _damage(folder, given):
        yield Finding(at, f"{model} {fault}; copy or download it again")


def _single_file(model: str, config: str | None, at: Location) -> Iterator[Finding]:
    """What is wrong with a model's file and its configuration."""
    from huggingface_hub import constants

    config_at = (*at[:-1], "config")
    if config is not None:
        yield from embedded_or_named(config, config_at)
    try:
        file = single_file(model)
        named = file.configuration(config) if file else ""
    except SingleFileError as error:
        yield Finding(at, error.message.rstrip("."))
        return
    if file is None:
        return  # on the Hub, and not here yet
    folder = folder_here(model, None, config)
    if folder is None and HubAddress.parse(named) is None:
        yield Finding(config_at, f"there is no pipeline's folder {named}")
    elif folder is None and constants.HF_HUB_OFFLINE:
        message = (
            f"{model} needs the configuration of {named}, which is not on this machine, and "
            "HF_HUB_OFFLINE keeps it from being downloaded: name a folder that has it"
        )
        yield Finding(config_at, message, (at,))
    elif folder is not None and (found := pipeline_class(folder)) != file.kind.pipeline:
        message = f"{named} is a {found}, and {model} is for a {file.kind.pipeline}"
        yield Finding(config_at, message, (at,))


def _damage(folder: Path, given: Sequence[str]) -> str | None:
    """What a pipeline's folder lacks to be loaded, as far as indices and headers tell."""
    try:
        index = json.loads(read_text(folder / MODEL_INDEX))
        # Others are lists of numbers (Krea 2), or parts that are left out: [null, null].
        parts = [n for n, of in index.items() if isinstance(of, list) and isinstance(of[0], str)]
    except (OSError, ValueError, RecursionError, AttributeError, IndexError):
        return f"has a {MODEL_INDEX} that cannot be read"
    for part in parts:
        if part not in given and not is_folder(folder / part):
            return f"has no folder {part}, which its {MODEL_INDEX} names"
        for weights in sorted((folder / part).glob("*.safetensors")):
            try:
                lora_header(weights)
            except LoraError:
                return f"has a damaged file {part}/{weights.name}"
    return None


def _has_variant(folder: Path, variant: str) -> bool:
    named = re.compile(rf"\.{re.escape(variant)}(-\d+-of-\d+)?\.safetensors")
    return any(named.search(path.name) for path in folder.glob("*/*.safetensors"))


def _names_path(model: str) -> bool:
    """Whether what a recipe calls a model can only be a path, and no repository of the Hub."""
    return (
        HubAddress.parse(model) is None
        or model.startswith((".", "~", "/"))
        or (model.lower().endswith((".safetensors", *PICKLES)))
    )
