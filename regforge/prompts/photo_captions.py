"""`captions: auto`: a vision model says what is around the subject in each photo.

Only the place, the light and, for living things, the pose come from the model; the caption is put
together here, so that every photo's caption has the same form. What the subject looks like is left
out on purpose: the identifier is to stand for that.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.image_files import BrokenImage, decode, plain
from regforge.prompts.captions import instance_caption
from regforge.prompts.messages import Messages, question_seed
from regforge.prompts.phrase_rules import PhraseRules, tidy
from regforge.providers.language_model import LanguageModelClient, Question
from regforge.recipe import Recipe, kind_of

LONGEST_SIDE = 768
"""Pixels to which photos are shrunk before they are sent."""


class PhotoCaptionError(RegforgeError):
    """A photo that was not described."""


class NoVision(PhotoCaptionError):
    """A model that cannot look at photos."""

    exit_code = EXIT_USAGE


class Scene(BaseModel):
    """What is asked about an object."""

    background: str
    lighting: str


class LivingScene(BaseModel):
    """What is asked about a living thing."""

    background: str
    pose: str
    lighting: str


_SLOT = {"background": "background", "pose": "motion", "lighting": "lighting"}
"""Whose grammar each part of the reply has, in the order of the caption."""


def describe_photos(
    photos: Sequence[Path], recipe: Recipe, client: LanguageModelClient
) -> dict[str, str]:
    """Captions of photos, such as "a photo of a sks teapot on a wooden table, in soft daylight".

    Args:
        photos: Image files of the subject.
        recipe: Its subject and vision model.
        client: Whom to ask.

    Returns:
        A caption for each photo, by its file name. It has the identifier if the recipe has one.

    Raises:
        NoVision: The model is the embedded one.
        PhotoCaptionError: A photo cannot be read, or the model did not describe it.
        RegforgeError: The model cannot be used.
    """
    model = vision_model(recipe)
    messages = Messages(recipe)
    rules = PhraseRules(recipe.subject.class_noun, recipe.subject.identifier)
    living = kind_of(recipe) == "living"
    reply = LivingScene if living else Scene

    def problems(said: BaseModel) -> list[str]:
        return _problems(said, rules)

    questions = [
        Question(
            f"photo {photo.name}",
            _with_photo(messages("photo"), photo),
            reply,
            problems=problems,
            seed=question_seed(recipe.seed, "photo", photo.name),
            model=model,
        )
        for photo in photos
    ]
    said = dict(zip([photo.name for photo in photos], client.ask(questions), strict=True))
    if silent := [name for name, reply in said.items() if reply is None]:
        raise PhotoCaptionError(
            f"{model} did not describe {', '.join(silent)}"
            + (f": {reason}" if (reason := client.failed.get(f"photo {silent[0]}")) else "."),
            hint=f"Write the caption into {Path(silent[0]).stem}.txt beside the photo, or name "
            "another model in `prompts.llm.vision_model`.",
        )
    return {name: _caption(reply, recipe) for name, reply in said.items()}


def vision_model(recipe: Recipe) -> str:
    """The model that describes photos.

    Raises:
        NoVision: It is the embedded one.
    """
    model = recipe.prompts.llm.vision_model or recipe.prompts.llm.model
    if model.startswith("embedded/"):
        raise NoVision(
            f"subject.captions: auto needs a model that sees, and {model} does not.",
            hint="Name one in `prompts.llm.vision_model`, such as gpt-4o-mini or ollama_chat/"
            "llava, or write a .txt file with a caption beside each photo.",
        )
    return model


def _parts(reply: Any) -> dict[str, str]:
    said = reply.model_dump()
    return {part: tidy(said[part], slot) for part, slot in _SLOT.items() if part in said}


def _problems(reply: BaseModel, rules: PhraseRules) -> list[str]:
    found = []
    for part, phrase in _parts(reply).items():
        if part == "lighting" and not phrase:
            continue
        if why := rules.fault(phrase, _SLOT[part]):
            found.append(f"{part}: {phrase!r} {why}")
    return found


def _caption(reply: Any, recipe: Recipe) -> str:
    named = instance_caption(recipe.subject.identifier, recipe.subject.class_noun)
    parts = _parts(reply)
    around = " ".join(filter(None, [parts.get("pose"), parts["background"]]))
    light = f", {parts['lighting']}" if parts["lighting"] else ""
    return f"{named} {around}{light}"


def _with_photo(messages: list[dict[str, Any]], photo: Path) -> list[dict[str, Any]]:
    *before, last = messages
    image = {"type": "image_url", "image_url": {"url": data_url(photo)}}
    content = [{"type": "text", "text": last["content"]}, image]
    return [*before, {**last, "content": content}]


def data_url(photo: Path) -> str:
    """A photo as a JPEG `data:` URL: upright, shrunk, and without what the camera wrote into it.

    Raises:
        PhotoCaptionError: It cannot be read as an image.
    """
    try:
        image = plain(decode(photo.read_bytes()))
    except (OSError, BrokenImage) as error:
        raise PhotoCaptionError(f"{photo} cannot be read as an image: {error}.") from error
    image.info = {}
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
