"""What is wrong with a recipe as a whole: keys that do not fit together, files that are not there.

Each finding names the keys it is about, so that it can be left out where one of them is wrong in
itself. Also says what is allowed but probably not meant. Knows nothing of YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from regforge import resources
from regforge.embedded import EMBEDDED_FOLDERS
from regforge.embedded.english import has_words, without_words
from regforge.files import expanded, read_text
from regforge.hub.address import HubAddress
from regforge.lora_files import PICKLES, LoraError, lora_header, lora_in, require_lora
from regforge.recipe.class_noun import knows_word, noun_fault
from regforge.recipe.defaults import (
    bank_kind,
    benchmarks,
    draws_phrases,
    is_benchmark,
    kind_wanted,
    shipped_template,
)
from regforge.recipe.models import Recipe
from regforge.recipe.named_files import (
    LEADS_OUT,
    MODEL_INDEX,
    is_file,
    is_folder,
    photos_in,
    phrases_in,
    strays_in,
)
from regforge.recipe.phrases import cut, no_phrase
from regforge.recipe.problems import Location, Problem, RecipeError, shown
from regforge.recipe.prompts import Slot
from regforge.recipe.training import TrainingRecipe
from regforge.words import nearest

SCHEDULERS = (
    "euler_ancestral",
    "euler",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "unipc",
    "lms",
    "heun",
)
"""The names of `images.schedulers`; checked here too, before a model is fetched for nothing."""

_EMBEDDED: dict[Location, str] = {
    ("render", "model"): "embedded/tinyworld",
    ("prompts", "llm", "model"): "embedded/smollm2-135m",
    ("curate", "alignment", "model"): "embedded/judge",
}


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


def findings(recipe: Recipe) -> Iterator[Finding]:
    """Everything that is wrong with a recipe whose single values are right."""
    for check in _CHECKS:
        yield from check(recipe)


def check_recipe(recipe: Recipe) -> None:
    """Check a recipe that was made in Python; `load_recipe` has done it already.

    Raises:
        RecipeError: It cannot be carried out; the error names all problems.
    """
    refuse(recipe, findings(recipe))


def refuse(recipe: Recipe | TrainingRecipe, found: Iterable[Finding]) -> None:
    """Refuse a recipe that was made in Python, if there is a reason to.

    Raises:
        RecipeError: There is; the error names all problems.
    """
    problems = [Problem.at(None, each.location, each.message) for each in found]
    if recipe.extends is not None:
        problems.append(Problem.at(None, ("extends",), "works only in recipes that are files"))
    if problems:
        raise RecipeError(problems)


# --------------------------------------------------------------------------------------- subject


def _class_noun(recipe: Recipe) -> Iterator[Finding]:
    noun, at = recipe.subject.class_noun, ("subject", "class_noun")
    bad = list(class_noun(noun, at))
    yield from bad
    if not bad and recipe.subject.kind is None and bank_kind(noun) is None:
        yield Finding(("subject", "kind"), kind_wanted(recipe), (at,))


def _identifier(recipe: Recipe) -> Iterator[Finding]:
    identifier, noun = recipe.subject.identifier, recipe.subject.class_noun
    at, about = ("subject", "identifier"), (("subject", "class_noun"),)
    if identifier is None:
        return
    if not identifier.strip():
        yield Finding(at, "must not be blank; leave the line out if there is none")
    elif has_words(noun, identifier):
        yield Finding(at, in_noun(identifier, noun), about)
    elif has_words(identifier, noun):
        yield Finding(at, f"must be the token alone, without the class noun {noun!r}", about)


def _photos(recipe: Recipe) -> Iterator[Finding]:
    images, at = recipe.subject.images, ("subject", "images")
    if images is not None:
        yield from photo_folder(images, at)
    captions = recipe.subject.captions
    if captions != "files" and images is not None:
        llm = recipe.prompts.llm
        if is_embedded(llm.vision_model or llm.model):
            yield Finding(
                ("subject", "captions"),
                f"`{captions}` needs a model that can see: name one in prompts.llm.vision_model",
                (("prompts", "llm", "model"), ("prompts", "llm", "vision_model"), at),
            )


def _sets(recipe: Recipe) -> Iterator[Finding]:
    sets = recipe.prompts.sets
    if sets.get("import", 0) > 0 and recipe.prompts.imported is None:
        yield Finding(
            ("prompts", "sets", "import"),
            "needs captions to take over: name their dataset in prompts.import.dataset",
            (("prompts", "import"),),
        )
    if sets.get("against", 0) > 0 and recipe.subject.images is None:
        yield Finding(
            ("prompts", "sets", "against"),
            "needs the photos of the subject: name their folder in subject.images",
            (("subject", "images"),),
        )


def _import(recipe: Recipe) -> Iterator[Finding]:
    # Whether a folder is there is asked when it is read: a run that has read it needs it no more.
    taken, at = recipe.prompts.imported, ("prompts", "import")
    if taken is None:
        return
    if not taken.dataset.strip():
        yield Finding((*at, "dataset"), "must not be blank")
    else:
        yield from dataset_revision(taken.dataset, taken.revision, at)


# ----------------------------------------------------------------------------------------- slots


def _slots(recipe: Recipe) -> Iterator[Finding]:
    slots = recipe.prompts.slots or ()
    kind = recipe.subject.kind
    if kind is None and any(slot.name == "motion" for slot in slots):
        kind = bank_kind(recipe.subject.class_noun)
    about = (("subject", "kind"), ("subject", "class_noun"))
    for number, slot in enumerate(slots):
        at = ("prompts", "slots", number)
        if slot.name == "motion" and kind == "object":
            yield Finding(
                at,
                "motion is for living things: leave the slot out, or set subject.kind to living",
                about,
            )
        yield from _phrases(recipe, slot, at)


def _phrases(recipe: Recipe, slot: Slot, at: Location) -> Iterator[Finding]:
    from regforge.embedded.phrase_banks import SLOTS

    llm, subject = recipe.prompts.llm.model, recipe.subject
    about = (("subject", "class_noun"), ("subject", "identifier"))

    def fault(phrase: str) -> str | None:
        return no_phrase(phrase, slot.name, subject.class_noun, subject.identifier)

    if slot.origin == "file" and slot.file is not None:
        found = list(_text_file(slot.file, (*at, "file")))
        yield from found
        for line, phrase in () if found else phrases_in(slot.file).items():
            if why := fault(phrase):
                yield Finding((*at, "file"), f"{slot.file}:{line}: {cut(phrase)} {why}", about)
    for position, value in enumerate(slot.values or ()):
        if why := fault(value):
            yield Finding((*at, "values", position), f"{cut(value)} {why}", about)
    if slot.name in SLOTS:
        return
    known = f"the phrase banks have only {', '.join(SLOTS)}"
    if slot.origin == "bank":
        yield Finding((*at, "from"), f"there is no bank for {slot.name!r}; {known}")
    asks = slot.origin == "llm" and slot.values is None and recipe.prompts.vocabulary is None
    if asks and is_embedded(llm) and draws_phrases(recipe):
        yield Finding(
            at,
            f"needs `values` for the slot {slot.name!r}: {llm} only chooses among phrases, "
            f"and {known}",
            (("prompts", "llm", "model"), ("prompts", "vocabulary")),
        )


# ----------------------------------------------------------------------------------------- files


def _files(recipe: Recipe) -> Iterator[Finding]:
    prompts = recipe.prompts
    template = prompts.template
    if template is not None and not (shipped_template(template) or is_file(Path(template))):
        yield _missing_template(template)
    if prompts.messages is not None and not is_folder(prompts.messages):
        yield Finding(("prompts", "messages"), f"there is no folder {prompts.messages}")
    if prompts.vocabulary is not None and not is_file(prompts.vocabulary):
        yield Finding(("prompts", "vocabulary"), f"there is no file {prompts.vocabulary}")
    for number, entry in enumerate(prompts.exclude):
        at = ("prompts", "exclude", number)
        if is_benchmark(entry):
            continue
        if is_file(Path(entry)):
            yield from _text_file(Path(entry), at)
            continue
        near = nearest(Path(entry).name, benchmarks())
        meant = f", did you mean '{near}'?" if near else ""
        yield Finding(at, f"there is no file {entry}{meant}")


def _missing_template(name: str) -> Finding:
    shipped = resources.templates()
    names = sorted(p.relative_to(shipped).as_posix() for p in shipped.glob("caption/*.j2"))
    near = nearest("/".join(Path(name).parts[-2:]), names)
    meant = f", did you mean '{near}'?" if near else ""
    return Finding(("prompts", "template"), f"there is no template {name}{meant}")


def _text_file(path: Path, at: Location) -> Iterator[Finding]:
    try:
        if not phrases_in(path):
            yield Finding(at, f"{path} has no phrases; write one a line")
    except FileNotFoundError:
        yield Finding(at, f"there is no file {path}")
    except UnicodeDecodeError:
        yield Finding(at, f"{path} is not UTF-8 text")
    except OSError as error:
        yield Finding(at, f"{path} cannot be read: {error.strerror}")


# ---------------------------------------------------------------------------------------- models


def _models(recipe: Recipe) -> Iterator[Finding]:
    render, alignment, llm = recipe.render, recipe.curate.alignment, recipe.prompts.llm.model
    at = ("render", "model")
    if render.renderer == "local":
        given = ("vae",) if render.vae else ()
        yield from pipeline_findings(render.model, render.variant, at, ("render", "variant"), given)
        if render.vae is not None:
            yield from _one_model(render.vae, ("render", "vae"))
        for number, lora in enumerate(render.lora):
            yield from _lora(lora.path, ("render", "lora", number, "path"))
    elif is_embedded(render.model):
        yield Finding(
            at,
            "an image API draws with a LiteLLM image model, such as 'gpt-image-1'",
            (("render", "renderer"),),
        )
    elif not render.model.strip():
        yield Finding(at, "must not be blank")
    yield from _embedded_or_named(llm, ("prompts", "llm", "model"))
    if alignment is not None:
        yield from _one_model(alignment.model, ("curate", "alignment", "model"))


def _embedded_or_named(name: str, at: Location) -> Iterator[Finding]:
    known = _EMBEDDED.get(at)
    if is_embedded(name) and name != known:
        yield Finding(at, f"there is no {name!r}" + (f", only '{known}'" if known else ""))
    elif not name.strip():
        yield Finding(at, "must not be blank")


def _one_model(name: str, at: Location) -> Iterator[Finding]:
    """What is wrong with a model that is no pipeline: an encoder, an autoencoder."""
    yield from _embedded_or_named(name, at)
    path = expanded(name)
    if is_embedded(name) or not name.strip():
        return
    if is_folder(path):
        if not is_file(path / "config.json"):
            yield Finding(at, f"{name} holds no model: it has no config.json")
    elif names_path(name):
        yield Finding(at, f"there is no folder {name}")


def _lora(name: str, at: Location) -> Iterator[Finding]:
    path = expanded(name)
    try:
        file = lora_in(path) if is_folder(path) else path
        if file is not None and is_file(file):
            require_lora(file)
        elif is_folder(path):
            yield Finding(at, f"{name} holds no .safetensors file")
        elif names_path(name) or not name.strip():
            yield Finding(at, f"there is no LoRA {name}")
    except LoraError as error:
        yield Finding(at, error.message.rstrip("."))


def _addresses(recipe: Recipe) -> Iterator[Finding]:
    for at, address in (
        (("prompts", "llm", "api_base"), recipe.prompts.llm.api_base),
        (("render", "api_base"), recipe.render.api_base),
    ):
        if address is None:
            continue
        parts = _url(address)
        if parts is None:
            yield Finding(at, "must be a URL such as http://localhost:8000/v1")
        elif parts[0] or parts[1]:
            yield Finding(
                at, "must not hold a password or key; set it in the provider's environment variable"
            )


def _url(address: str) -> tuple[bool, bool] | None:
    """Whether a URL holds a user and whether it holds a query; None if it is none."""
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    return "@" in parts.netloc, bool(re.search(r"key|token|secret|password", parts.query, re.I))


def _hosted(recipe: Recipe) -> Iterator[Finding]:
    render, about = recipe.render, (("render", "renderer"),)
    if render.renderer != "hosted":
        return
    for key in ("scheduler", "lora", "vae", "variant", "revision"):
        if getattr(render, key):
            yield Finding(("render", key), "does not go with `renderer: hosted`", about)
    if render.negative_prompt and render.api_base is None:
        yield Finding(
            ("render", "negative_prompt"),
            "goes with `renderer: hosted` only for a server of your own (render.api_base)",
            (*about, ("render", "api_base")),
        )


def _money(recipe: Recipe) -> Iterator[Finding]:
    llm = recipe.prompts.llm
    if llm.max_cost is not None and llm.max_tokens is None:
        at = ("prompts", "llm", "max_cost")
        message = "needs prompts.llm.max_tokens: nobody knows what a reply of any length may cost"
        yield Finding(at, message, (("prompts", "llm", "max_tokens"),))


def _rendering(recipe: Recipe) -> Iterator[Finding]:
    for side in ("width", "height"):
        pixels = getattr(recipe.render, side)
        if pixels is not None:
            yield from multiple_of_8(pixels, ("render", side))
    scheduler = recipe.render.scheduler
    of_diffusers = re.fullmatch(r"[A-Z]\w*Scheduler", scheduler or "")
    if scheduler is not None and scheduler not in SCHEDULERS and not of_diffusers:
        near = nearest(scheduler, SCHEDULERS)
        but = f"; did you mean '{near}'?" if near else f", not {shown(scheduler)}"
        known = f"one of {', '.join(SCHEDULERS)}, or a diffusers class"
        yield Finding(("render", "scheduler"), f"must be {known}{but}")


def _repository(recipe: Recipe) -> Iterator[Finding]:
    repo = recipe.dataset.repo_id
    if repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        yield Finding(("dataset", "repo_id"), f"must look like user/name, not {repo!r}")


_CHECKS: Sequence[Callable[[Recipe], Iterable[Finding]]] = (
    _class_noun,
    _identifier,
    _photos,
    _sets,
    _import,
    _slots,
    _files,
    _models,
    _addresses,
    _hosted,
    _money,
    _rendering,
    _repository,
)


# ------------------------------------------------------------- for dataset and training recipes


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
    advice = f"take it out there: {rest!r}" if rare else "choose a rare token: sks"
    return f"is part of the class noun {noun!r}; {advice}"


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


def dataset_revision(dataset: str, revision: str | None, section: Location) -> Iterator[Finding]:
    """What is wrong with the revision of a dataset, named in a section of the recipe."""
    address = HubAddress.parse(dataset)
    at, about = (*section, "revision"), ((*section, "dataset"),)
    if revision is not None and address is None:
        yield Finding(at, "goes with a dataset of the Hub alone: user/name", about)
    elif revision is not None and address and address.revision not in (None, revision):
        yield Finding(at, f"the dataset's name says {shown(address.revision)} already", about)


def pipeline_findings(
    model: str,
    variant: str | None,
    at: Location,
    variant_at: Location,
    given: Sequence[str] = (),
) -> Iterator[Finding]:
    """What is wrong with a model that images are drawn with, as far as this machine knows.

    Args:
        model: As the recipe names it: a folder, a repository of the Hub, or the embedded one.
        variant: Of its weights.
        at: The key that names the model.
        variant_at: The key that names the variant.
        given: Parts that come from elsewhere, such as `vae`.
    """
    embedded = _EMBEDDED[("render", "model")]
    if not model.strip():
        yield Finding(at, "must not be blank")
        return
    if is_embedded(model) and model != embedded:
        yield Finding(at, f"there is no {model!r}, only '{embedded}'")
        return
    folder = EMBEDDED_FOLDERS.get(model) or expanded(model)
    if is_file(folder):
        yield Finding(
            at,
            f"{model} is a file, and a folder in diffusers' layout is needed; diffusers makes one "
            "with `StableDiffusionPipeline.from_single_file(...).save_pretrained(...)`",
        )
    elif not is_folder(folder):
        if names_path(model):
            yield Finding(at, f"there is no folder {model}")
    elif not is_file(folder / MODEL_INDEX):
        yield Finding(at, f"{model} has no {MODEL_INDEX}, so it is no diffusers pipeline")
    elif variant is not None and not _has_variant(folder, variant):
        yield Finding(variant_at, f"{model} has no weights of the variant {variant!r}", (at,))
    elif fault := _damage(folder, given):
        yield Finding(at, f"{model} {fault}; copy or download it again")


def _damage(folder: Path, given: Sequence[str]) -> str | None:
    """What a pipeline's folder lacks to be loaded, as far as indices and headers tell."""
    try:
        index = json.loads(read_text(folder / MODEL_INDEX))
        parts = [name for name, of in index.items() if isinstance(of, list) and of[0] is not None]
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


def names_path(model: str) -> bool:
    """Whether what a recipe calls a model can only be a path, and no repository of the Hub."""
    return (
        HubAddress.parse(model) is None
        or model.startswith((".", "~", "/"))
        or (model.lower().endswith((".safetensors", *PICKLES)))
    )


def multiple_of_8(pixels: int, at: Location) -> Iterator[Finding]:
    """What is wrong with a side of an image."""
    if pixels % 8:
        lower = pixels - pixels % 8
        message = f"must be a multiple of 8, such as {lower} or {lower + 8}, not {pixels}"
        yield Finding(at, message)


# ----------------------------------------------------------------------------------------- words


def is_embedded(model: str) -> bool:
    """Whether a model's name is one of those that travel with regforge."""
    return model.startswith("embedded/")
