"""The digest of a recipe: one number for everything that decides what is made.

Two recipes with the same digest make the same dataset. It covers every field that is not marked
`RUNTIME`, with defaults filled in (writing one down changes nothing), and in place of paths what
the files say (moving them changes nothing): of models and LoRAs on this machine too, the embedded
ones among them. Ids and seeds of images follow from it.

Captions of another dataset (`prompts.import`) are like a language model's replies: the run keeps
what it was given, and the digest covers only whom it asked. Of a dataset on the Hub that is its
address and the revision as the recipe has it, of a folder or file its name. What it holds can be
gigabytes, in forms that recipes know nothing of, and may be gone when the run goes on.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from regforge.digests import file_digest, revision_of
from regforge.embedded import EMBEDDED_FOLDERS
from regforge.files import MOST_IMAGE, expanded, parse_json, read_file, read_text
from regforge.recipe.defaults import (
    drawn_slots,
    import_of,
    is_benchmark,
    kind_of,
    match_of,
    shares_of,
    slots_of,
    template_file,
)
from regforge.recipe.models import Recipe
from regforge.recipe.named_files import (
    caption_files_of,
    is_file,
    is_folder,
    photos_in,
    phrases_in,
)
from regforge.recipe.problems import Location, Problem, RecipeError
from regforge.recipe.prompts import Slot
from regforge.recipe.sections import Section

SCHEME = 1
"""Raised when the digest is computed differently; all old digests are void then."""


def recipe_digest(recipe: Recipe) -> str:
    """The SHA-256 of what a recipe makes, 64 hex digits.

    Raises:
        RecipeError: A file that the recipe names cannot be read.
    """
    return digest_of({"scheme": SCHEME, **data_of(recipe)})


def digest_of(content: dict[str, Any]) -> str:
    """The SHA-256 of JSON values, however their keys are ordered."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def data_of(recipe: Recipe) -> dict[str, Any]:
    """What the digest covers, as JSON values: useful to see why two digests differ.

    Raises:
        RecipeError: A file that the recipe names cannot be read.
    """
    data = fields_of(recipe)
    prompts, subject = data["prompts"], data["subject"]
    shares = shares_of(recipe)
    subject["kind"] = kind_of(recipe)
    prompts["sets"] = dict(shares)
    prompts["slots"] = [
        _slot(recipe, slot, number) for number, slot in enumerate(drawn_slots(recipe))
    ]
    if not prompts["slots"]:  # nobody draws phrases; imported captions may have slots of that name
        prompts["slots"] = [slot.name for slot in slots_of(recipe)]
    prompts["template"] = _text(template_file(recipe), ("prompts", "template"))
    given = [slot for slot in drawn_slots(recipe) if slot.origin in ("llm", "bank")]
    if all(slot.name != "style" for slot in given):  # nobody has styles to weigh
        del prompts["photo_share"]
    prompts["exclude"] = sorted({_excluded(recipe, n) for n in range(len(recipe.prompts.exclude))})
    prompts["match"] = sorted(match_of(recipe))
    if prompts["against"] == "varied" or "against" not in shares:
        del prompts["against"]  # as before there was a choice
    prompts["vocabulary"] = _vocabulary(recipe.prompts.vocabulary)
    del prompts["imported"]  # without one, the digest is that of before there were any
    if (taken := import_of(recipe)) is not None:
        source = str(taken.address or Path(taken.dataset).name)
        prompts["import"] = {"dataset": source, "caption_column": taken.caption_column}
    if "against" in shares and recipe.subject.images is not None:
        # What a vision model says is like what a language model says: the run keeps it. Written
        # beside the photos, it changes nothing.
        described = recipe.subject.captions != "files"
        subject["images"] = photos_of(recipe.subject.images, captions=not described)
        subject["captions"] = "auto" if described else "files"
    else:  # nobody looks at the photos
        subject["images"] = subject["captions"] = prompts["llm"]["vision_model"] = None
    render, alignment = data["render"], data["curate"]["alignment"]
    if recipe.render.renderer == "local":
        render["model"] = model_of(recipe.render.model, ("render", "model"))
    if recipe.render.vae is None:
        del render["vae"]  # as before there were any
    else:
        render["vae"] = model_of(recipe.render.vae, ("render", "vae"))
    render["lora"] = [  # of none as before there could be several
        {**fields_of(lora), "path": model_of(lora.path, ("render", "lora", number, "path"))}
        for number, lora in enumerate(recipe.render.lora)
    ] or None
    if alignment is not None:
        alignment["model"] = model_of(alignment["model"], ("curate", "alignment", "model"))
    return data


def fields_of(section: Section) -> dict[str, Any]:
    """The fields of a section that are not marked `RUNTIME`, as JSON values.

    Paths are left out; `data_of` puts what the files say in their place.
    """
    return {
        name: _plain(getattr(section, name))
        for name, field in type(section).model_fields.items()
        if not is_runtime(field)
    }


def is_runtime(field: FieldInfo) -> bool:
    """Whether a field is marked `RUNTIME`: it does not change what is made."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("x-runtime"))


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return fields_of(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, Path) else value


def _slot(recipe: Recipe, slot: Slot, number: int) -> dict[str, Any]:
    data = fields_of(slot)
    data["source"] = slot.origin
    if slot.origin != "llm":
        data["count"] = None  # nobody is asked for phrases
    elif slot.values is None:
        data["count"] = slot.count or recipe.prompts.phrases_per_slot
    if slot.file is not None:
        data["file"] = _phrases(slot.file, ("prompts", "slots", number, "file"))
    return data


def _excluded(recipe: Recipe, number: int) -> str:
    entry = recipe.prompts.exclude[number]
    if is_benchmark(entry):
        return entry
    return _phrases(Path(entry), ("prompts", "exclude", number))


def _vocabulary(path: Path | None) -> str | None:
    """Digest of what a vocabulary file says, however it is indented."""
    if path is None:
        return None
    text = _read_text(path, ("prompts", "vocabulary"))
    try:
        return _sha256(json.dumps(parse_json(text)).encode())
    except ValueError:  # whoever uses it will say what is wrong with it
        return _sha256(text.encode())


def photos_of(folder: Path, *, captions: bool = True) -> list[list[str]]:
    """Name and digest of each photo and of each file with captions, by name.

    Args:
        folder: The photos'.
        captions: Whether files with captions count.

    Raises:
        RecipeError: One of them cannot be read.
    """
    at = ("subject", "images")
    try:
        photos = photos_in(folder)
    except OSError as error:
        raise _unreadable(folder, at, error) from error
    return [
        *([photo.name, _sha256(_read(photo, at))] for photo in photos),
        *([text.name, _text(text, at)] for text in caption_files_of(photos, folder) if captions),
    ]


def model_of(named: str, at: Location) -> str:
    """What stands for a model: of one on this machine what its files hold, else its name.

    Of a path at which nothing is its last part.

    Raises:
        RecipeError: A file of it cannot be read.
    """
    path = EMBEDDED_FOLDERS.get(named) or expanded(named)
    try:
        if is_folder(path):
            return revision_of(path)
        if is_file(path):
            return f"sha256:{file_digest(path)}"
    except OSError as error:
        raise _unreadable(path, at, error) from error
    return path.name if path.is_absolute() else named


# ----------------------------------------------------------------------------------------- files


def _text(path: Path, at: Location) -> str:
    """Digest of a text, the same for all systems' line ends."""
    return _sha256(_read_text(path, at).encode())


def _phrases(path: Path, at: Location) -> str:
    try:
        return _sha256("\n".join(phrases_in(path).values()).encode())
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, at, error) from error


def _read_text(path: Path, at: Location) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, at, error) from error


def _read(path: Path, at: Location) -> bytes:
    try:
        return read_file(path, MOST_IMAGE)
    except OSError as error:
        raise _unreadable(path, at, error) from error


def _unreadable(path: Path, at: Location, error: OSError | UnicodeDecodeError) -> RecipeError:
    reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return RecipeError([Problem.at(None, at, f"{path} cannot be read: {reason}")])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
