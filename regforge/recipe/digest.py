"""Which recipe it is: its digest, all of it written out, and what makes it another one.

The digest is one number for everything that decides what is made, or where training goes. Two
recipes with the same digest make the same dataset, or take the same training steps, so that one may
go on with the other's run. It covers every field that is not `Runtime`, with defaults filled in
(writing one down changes nothing), and in place of paths what the files say (moving them changes
nothing): of models and LoRAs on this machine too, the embedded ones among them. Ids and seeds of
images follow from it.

Captions of another dataset (`prompts.import`) are like a language model's replies: the run keeps
what it was given, and the digest covers only whom it asked: the address and revision on the Hub as
the recipe has them, or the name of the folder or file. What it holds can be gigabytes, and may be
gone when the run goes on. The same holds for the regularization dataset of a training recipe; of
one that is named by its recipe, that recipe's digest and how many images it asks for count. How
many training steps are taken counts only where the learning rate depends on it: the same recipe
with more steps goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from regforge.embedded import EMBEDDED_FOLDERS
from regforge.embedded.phrase_banks import with_noun
from regforge.files import (
    MOST_IMAGE,
    expanded,
    file_digest,
    parse_json,
    read_file,
    read_text,
    revision_of,
)
from regforge.hub.errors import HubAddress
from regforge.recipe.checks import cautions, findings
from regforge.recipe.loading import PATHS, AnyRecipe, dataset_recipe_of, may_be_path
from regforge.recipe.models import (
    Recipe,
    drawn_slots,
    follows_photos,
    import_of,
    is_benchmark,
    kind_of,
    match_of,
    shares_of,
    slots_of,
    template_file,
    templates_of,
)
from regforge.recipe.named_files import (
    caption_files_of,
    is_file,
    is_folder,
    photos_in,
    phrases_in,
)
from regforge.recipe.problems import Location, Problem, RecipeError
from regforge.recipe.rendering import ALL_STEPS, Render
from regforge.recipe.sections import Section, Slot
from regforge.recipe.single_files import SingleFileError, hub_file, single_file
from regforge.recipe.training import TrainingRecipe
from regforge.recipe.training_checks import (
    training_cautions,
    training_findings,
    twins_of,
    uses_regularization,
)
from regforge.recipe.yaml_nodes import Dumper
from regforge.version import __version__
from regforge.words import subject_name

R = TypeVar("R", Recipe, TrainingRecipe)
T = TypeVar("T")

SCHEME = 1
"""Raised when the digest is computed differently; all old digests are void then."""

_OF_BOTH_METHODS = ("kind", "text_encoder", "text_encoder_lr")


def checked(recipe: R) -> R:
    """The recipe for a run: sound, and knowing its digest from here on, so that nobody asks again.

    One that was read from a file has been checked; one that was made in Python is checked here.

    Raises:
        RecipeError: It cannot be carried out; the error names all problems.
    """
    problems = [] if recipe.is_checked else list(_problems(recipe))
    if problems:
        raise RecipeError(problems)
    return recipe.known(digest=recipe_digest(recipe))


def _problems(recipe: AnyRecipe) -> Iterator[Problem]:
    found = training_findings(recipe) if isinstance(recipe, TrainingRecipe) else findings(recipe)
    for each in found:
        yield Problem.at(None, each.location, each.message)
    for key in ("extends", "subjects"):  # carried out where a recipe is read
        if getattr(recipe, key) is not None:
            yield Problem.at(None, (key,), "works only in recipes that are files")


def recipe_warnings(recipe: AnyRecipe) -> list[str]:
    """What to tell the user before a run; none of it keeps the recipe from being carried out."""
    found = training_cautions(recipe) if isinstance(recipe, TrainingRecipe) else cautions(recipe)
    return list(found)


def recipe_digest(recipe: AnyRecipe) -> str:
    """The SHA-256 of what a recipe of either kind makes, 64 hex digits.

    Raises:
        RecipeError: A file that the recipe names cannot be read.
    """
    if recipe.digest is not None:
        return recipe.digest
    content = {"scheme": SCHEME, **_covered(recipe)}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return _sha256(text.encode())


def _covered(recipe: AnyRecipe) -> dict[str, Any]:
    """What the digest covers, as JSON values."""
    if isinstance(recipe, TrainingRecipe):
        return _training_data_of(recipe)
    return _data_of(recipe)


# ------------------------------------------------------------------------------- dataset recipes


def _data_of(recipe: Recipe) -> dict[str, Any]:
    data = _fields_of(recipe)
    _replace_prompts(recipe, data["prompts"])
    subject, render = data["subject"], data["render"]
    subject["kind"] = kind_of(recipe)
    if follows_photos(recipe) and recipe.subject.images is not None:
        # What a vision model says is like what a language model says: the run keeps it. Written
        # beside the photos, it changes nothing.
        described = recipe.subject.captions != "files"
        name = subject_name(recipe.subject.identifier, recipe.subject.class_noun)
        subject["images"] = _photos_of(recipe.subject.images, "" if described else name)
        subject["captions"] = "auto" if described else "files"
    else:  # nobody looks at the photos
        subject["images"] = subject["captions"] = None
        data["prompts"]["llm"]["vision_model"] = None
    if recipe.render.renderer == "local":
        render["model"] = _model_of(recipe.render.model, ("render", "model"))
    _configure(render, recipe.render.model, recipe.render.config, ("render", "config"))
    _place_of_drawing(recipe.render, render)
    del render["speed"]  # what it means is there
    for key, whole in (("cache_interval", 1), ("guidance_window", list(ALL_STEPS))):
        if render[key] == whole:
            del render[key]  # as before there was a choice
    if recipe.render.quantize is None:
        del render["quantize"]  # as before there was a choice
    if recipe.render.vae is None:
        del render["vae"]  # as before there were any
    else:
        render["vae"] = _model_of(recipe.render.vae, ("render", "vae"))
    render["lora"] = [  # of none as before there could be several
        {**_fields_of(lora), "path": _model_of(lora.path, ("render", "lora", number, "path"))}
        for number, lora in enumerate(recipe.render.lora)
    ] or None
    alignment = data["curate"]["alignment"]
    if alignment is not None:
        alignment["model"] = _model_of(alignment["model"], ("curate", "alignment", "model"))
    return data


def _place_of_drawing(render: Render, data: dict[str, Any]) -> None:
    """What a workflow says counts; which of several servers draws does not."""
    if render.workflow is None:
        del data["workflow"]  # as before there were any
    else:
        text = _text_of(render.workflow, ("render", "workflow"))
        with suppress(ValueError):  # the checks say what is wrong with it
            text = json.dumps(parse_json(text), sort_keys=True)  # however it is indented
        data["workflow"] = _sha256(text.encode())
    if not render.nodes:
        del data["nodes"]
    if render.renderer not in ("local", "hosted"):
        del data["api_base"]


def _replace_prompts(recipe: Recipe, data: dict[str, Any]) -> None:
    prompts, shares, drawn = recipe.prompts, shares_of(recipe), drawn_slots(recipe)
    data["sets"] = dict(shares)
    data["slots"] = [_slot(recipe, slot, number) for number, slot in enumerate(drawn)]
    if not drawn:  # nobody draws phrases; imported captions may have slots of that name
        data["slots"] = [slot.name for slot in slots_of(recipe)]
    used = templates_of(recipe)
    texts = [_text_of(template_file(each.file), ("prompts", "template")) for each in used]
    digests = [_sha256(text.encode()) for text in texts]
    data["template"] = digests[0]
    if len(used) > 1:
        data["template"] = [[d, each.share] for d, each in zip(digests, used, strict=True)]
    if not any(slot.name == "style" and slot.origin in ("llm", "bank") for slot in drawn):
        del data["photo_share"]  # nobody has styles to weigh
    excluded = {
        entry if is_benchmark(entry) else _phrases_of(Path(entry), ("prompts", "exclude", number))
        for number, entry in enumerate(prompts.exclude)
    }
    followed = "captions" if "captions" in shares else "against"
    data["exclude"], data["match"] = sorted(excluded), sorted(match_of(recipe, followed))
    if prompts.vocabulary is not None:
        text = _text_of(prompts.vocabulary, ("prompts", "vocabulary"))
        with suppress(ValueError):  # whoever uses it will say what is wrong with it
            text = json.dumps(parse_json(text))  # however it is indented
        data["vocabulary"] = _sha256(text.encode())
    del data["imported"]  # without one, the digest is that of before there were any
    if (taken := import_of(recipe)) is not None:
        source = str(taken.address or Path(taken.dataset).name)
        data["import"] = {"dataset": source, "caption_column": taken.caption_column}


def _slot(recipe: Recipe, slot: Slot, number: int) -> dict[str, Any]:
    data = _fields_of(slot)
    data["source"] = slot.origin
    if slot.presence == 1:
        del data["presence"]  # as before there was a choice
    if slot.origin != "llm":
        data["count"] = None  # nobody is asked for phrases
    elif slot.values is None:
        data["count"] = slot.count or recipe.prompts.phrases_per_slot
    if slot.file is not None:
        data["file"] = _phrases_of(slot.file, ("prompts", "slots", number, "file"))
    return data


# ------------------------------------------------------------------------------ training recipes


def _training_data_of(recipe: TrainingRecipe) -> dict[str, Any]:
    data = {key: value for key, value in _fields_of(recipe).items() if value != {}}
    data["base_model"] = _model_of(recipe.base_model, ("base_model",))
    _configure(data, recipe.base_model, recipe.config, ("config",))
    made_by = dataset_recipe_of(recipe)
    subject, optimizer = data["subject"], recipe.optimizer
    # Captions that the dataset's recipe has written are covered by its digest.
    described = made_by is not None and made_by.subject.captions != "files"
    described = described and recipe.subject.captions == "auto"
    name = subject_name(recipe.subject.word, recipe.subject.class_noun)
    subject["images"] = _photos_of(recipe.subject.images, "" if described else name)
    if recipe.subject.captions == "auto":
        del subject["captions"]  # as before there was a choice
    data["regularization"] = _regularization(recipe, made_by, data["regularization"])
    data["method"] = _method(recipe, data["method"])
    if optimizer.scheduler == "constant" and optimizer.warmup_steps <= optimizer.steps:
        del data["optimizer"]["steps"]
    if optimizer.timestep_sampling == "auto":
        del data["optimizer"]["timestep_sampling"]  # as before there was a choice
    if not optimizer.ema:
        data["optimizer"]["ema_decay"] = None
    return data


def _regularization(
    recipe: TrainingRecipe, made_by: Recipe | None, data: dict[str, Any]
) -> dict[str, Any] | None:
    named = recipe.regularization
    kept = {"class_twins": twins_of(recipe), "drift_penalty": named.drift_penalty}
    if recipe.method.kind == "embedding":
        kept["drift_penalty"] = 0
    for key, value in kept.items():
        if not value:
            del data[key]  # as before there was a choice
    if named.dataset is None or not uses_regularization(recipe):
        of_twins = ("prior_weight", "per_instance") if twins_of(recipe) else ()
        return {key: data[key] for key in (*of_twins, *kept) if key in data} or None
    if made_by is not None:
        recipe_named = {"recipe": recipe_digest(made_by), "images": made_by.image_count}
        return {**data, "dataset": recipe_named}
    address = HubAddress.parse(named.dataset, dataset=True)
    if address is not None:
        return {**data, "dataset": str(address.at(named.revision)), "revision": None}
    path = Path(named.dataset)
    return {**data, "dataset": path.name if path.is_absolute() else named.dataset, "revision": None}


def _method(recipe: TrainingRecipe, data: dict[str, Any]) -> dict[str, Any]:
    method = recipe.method
    if method.quantize is None:
        del data["quantize"]  # as before there was a choice
    data["alpha"] = float(method.alpha or method.rank)
    rate = method.text_encoder_lr or recipe.optimizer.lr
    data["text_encoder_lr"] = rate if method.text_encoder else None
    if method.kind == "embedding":
        return {key: data[key] for key in ("kind", "quantize") if key in data}
    return {key: data[key] for key in _OF_BOTH_METHODS} if method.kind == "full" else data


# ------------------------------------------------------------------------------ fields and files


def is_runtime(field: FieldInfo) -> bool:
    """Whether a field does not change what is made."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("x-runtime"))


def _fields_of(section: Section) -> dict[str, Any]:
    """The fields of a section that are not `Runtime`, as JSON values, without paths."""
    return {
        name: _plain(getattr(section, name))
        for name, field in type(section).model_fields.items()
        if not is_runtime(field)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return _fields_of(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, Path) else value


def _photos_of(folder: Path, name: str) -> list[list[str]]:
    """Name and digest of each photo and, if captions count, of each file with some, by name.

    `name` is what captions call the subject, empty where they do not count.
    """
    at = ("subject", "images")
    photos = _read(photos_in, folder, at)
    texts = caption_files_of(photos, folder) if name else []
    return [
        *([each.name, _sha256(_read(_image, each, at))] for each in photos),
        *([each.name, _sha256(with_noun(_text_of(each, at), name).encode())] for each in texts),
    ]


def _image(path: Path) -> bytes:
    return read_file(path, MOST_IMAGE)


def _model_of(named: str, at: Location) -> str:
    """What stands for a model: of one on this machine what its files hold, else its name."""
    path = EMBEDDED_FOLDERS.get(named) or expanded(named)
    if is_folder(path):
        return _read(revision_of, path, at)
    if is_file(path):
        return f"sha256:{_read(file_digest, path, at)}"
    return path.name if path.is_absolute() else named


def _configure(data: dict[str, Any], model: str, config: str | None, at: Location) -> None:
    """Replace what describes a model's file: what the recipe names, or the file's own folder."""
    del data["config"]  # as before models could be files
    try:
        # Of one on the Hub what the recipe says counts, not whether it is on this machine.
        if hub_file(model) is None and (file := single_file(model)) is not None:
            config = file.configuration(config)
    except SingleFileError:
        return  # the recipe is wrong, which others say
    if config is not None:
        data["config"] = _model_of(config, at)


def _phrases_of(path: Path, at: Location) -> str:
    return _sha256("\n".join(_read(phrases_in, path, at).values()).encode())


def _text_of(path: Path, at: Location) -> str:
    return _read(read_text, path, at)


def _read(reader: Callable[[Path], T], path: Path, at: Location) -> T:
    """What a reader finds in a file or folder that the recipe names.

    Raises:
        RecipeError: It cannot be read.
    """
    try:
        return reader(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problem = Problem.at(None, at, f"{path} cannot be read: {reason}")
        raise RecipeError([problem]) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------------------------ written out


def resolved_yaml(recipe: AnyRecipe, *, portable: bool = False, digest: str | None = None) -> str:
    """The full recipe as YAML, headed by the version of regforge and the digest.

    Args:
        recipe: What to write.
        portable: Write only the last part of every path, for datasets that others will see:
            nobody's home folder is in it, but the files have to be put beside it again.
        digest: Where it is known and the recipe's files may be gone.

    Returns:
        YAML from which `load_recipe` or `load_training_recipe` makes an equal recipe with the same
        digest, unless it is `portable` and names files.

    Raises:
        RecipeError: A file that the recipe names cannot be read.
    """
    data = recipe.model_dump(mode="json", by_alias=True, exclude={"extends", "subjects"})
    for location, what in PATHS[type(recipe)].items():
        for holder, key in _holders(data, location):
            value = holder[key]
            if not value or not isinstance(value, str) or not may_be_path(value, what):
                continue
            if what == "model" and not (
                portable and (Path(value).is_absolute() or value[0] in "~.")
            ):
                continue
            # abspath keeps symbolic links
            holder[key] = Path(value).name if portable else os.path.abspath(value)  # noqa: PTH100
    lines = [
        f"# Written by regforge {__version__}, with every key spelled out.",
        f"# digest: {digest or recipe_digest(recipe)}",
    ]
    if isinstance(recipe, Recipe):
        lines += _defaults(recipe)
        _tidy(data, portable=portable)
    if portable:
        lines.append("# Of paths only the last part is here.")
    body = yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=88)
    return "\n".join((*lines, "", body))


def _holders(data: Any, location: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    """The dicts and lists that hold the values at a location, and where in them."""
    key, *rest = location
    if key == "*" and not isinstance(data, list):
        return
    for each in range(len(data)) if key == "*" else [key] if data else []:
        if rest:
            yield from _holders(data[each], rest)
        else:
            yield data, each


def _defaults(recipe: Recipe) -> Iterator[str]:
    """What a dataset recipe means where it says nothing, a comment each."""
    if recipe.subject.kind is None:
        yield f"# kind: {kind_of(recipe)}"
    if recipe.prompts.slots is None:
        yield f"# slots: {', '.join(slot.name for slot in slots_of(recipe))}"
    if recipe.prompts.template is None:
        yield f"# template: {templates_of(recipe)[0].file}"


def _tidy(data: dict[str, Any], *, portable: bool) -> None:
    """Leave out what slots say nothing of and, for others, what a URL says besides the server."""
    prompts = data["prompts"]
    if prompts["slots"] is not None:
        prompts["slots"] = [
            {key: value for key, value in slot.items() if value is not None}
            for slot in prompts["slots"]
        ]
    for section in (data["render"], prompts["llm"]) if portable else ():
        bases = section["api_base"]
        if bases:
            said = [_server_of(each) for each in ([bases] if isinstance(bases, str) else bases)]
            section["api_base"] = said[0] if isinstance(bases, str) else said


def _server_of(address: str) -> str:
    parts = urlsplit(address)
    server = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=server, query="", fragment="").geturl()


# ------------------------------------------------------------------------------------ differences


def changed_keys(before: object, recipe: AnyRecipe) -> list[str]:
    """The keys that make a recipe another one than a run's, such as `prompts.template`.

    Args:
        before: What `resolved_yaml` wrote of the other recipe, loaded.
        recipe: A recipe of the same kind.

    Returns:
        The dotted names of keys that count for the digest, in the order of the recipe. None if the
        difference lies in what a file says. If a file of then is gone, or the recipe is of another
        version, all that differ.
    """
    written = _differing(before, yaml.safe_load(resolved_yaml(recipe)))
    try:
        counted = _differing(_covered(type(recipe).model_validate(before)), _covered(recipe))
    except (ValidationError, RecipeError):
        return written
    return [
        key
        for key in written
        if any(f"{key}.".startswith(f"{o}.") or f"{o}.".startswith(f"{key}.") for o in counted)
    ]


def _differing(before: object, now: object) -> list[str]:
    old, new = _flat(before), _flat(now)
    return [key for key in new | old if new.get(key) != old.get(key)]


def _flat(value: object, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: each
        for key, below in value.items()
        for name, each in _flat(below, f"{prefix}.{key}" if prefix else str(key)).items()
    }
