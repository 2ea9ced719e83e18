"""What an example says each time it is drawn: the caption, a part of it, or nothing.

The paper couples its data with dropout and cropping; its rules and rates are not known to us, so
what happens here is our interpretation:

    caption dropout   the whole caption is left out, of photos and regularization images alike
    slot dropout      each slot of a regularization caption may be left out; the caption is then
                      composed again from the others, by the template it was made with
    crop wording      the caption of a tight crop says that it is a close-up

All of it follows from (seed, stream, number). Knows words, and neither pixels nor tensors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regforge.files import read_text
from regforge.prompts.against import ATTRIBUTES, Surroundings
from regforge.prompts.captions import (
    CaptionTemplate,
    CaptionTemplateError,
    article_for,
    is_photograph,
    opening,
    word_pattern,
    words,
)
from regforge.training.order import Draw, generator

Write = Callable[[Mapping[str, str | None]], str]
"""Composes a caption from the phrases of some slots."""


@dataclass(frozen=True, slots=True)
class Said:
    """The caption of an image, and how to say less.

    Attributes:
        text: All of it.
        slots: The phrases in it that may be left out, by slot.
        write: Composes it from some of them; None where nothing can be left out.
    """

    text: str
    slots: Mapping[str, str] = field(default_factory=dict)
    write: Write | None = None


@dataclass(frozen=True, slots=True)
class Captioning:
    """How captions are varied.

    Attributes:
        seed: The recipe's.
        caption_dropout: `data.caption_dropout`.
        slot_dropout: `data.slot_dropout`.
        crop_wording: `data.crop_wording`.
    """

    seed: int
    caption_dropout: float
    slot_dropout: float
    crop_wording: bool

    def caption(self, draw: Draw, said: Said, *, tight: bool) -> str:
        """What an example is trained with.

        Args:
            draw: Decides what is left out.
            said: The caption of its image.
            tight: Whether its crop is a close-up.
        """
        rng = generator(self.seed, draw.stream, draw.number, "caption")
        if rng.random() < self.caption_dropout:
            return ""
        text = said.text
        if said.write is not None:
            kept = {slot: p for slot, p in said.slots.items() if rng.random() >= self.slot_dropout}
            if len(kept) < len(said.slots):
                text = said.write(kept)
        return close_up(text) if tight and self.crop_wording else text


# ------------------------------------------------------------------------------------- less slots


class Composer:
    """Composes captions of a dataset again, as they were composed when it was made.

    Args:
        template: The dataset's caption.j2.
        name: What people call it, for errors.
        slots: The dataset's.
    """

    def __init__(self, template: Path, name: str, slots: Sequence[str]) -> None:
        self._file = template
        self._name = name
        self._slots = slots
        self._template = functools.lru_cache(maxsize=64)(self._load)

    def said(
        self,
        text: str,
        slots: Mapping[str, str | None],
        *,
        class_noun: str,
        kind: str,
        prompt_set: str | None,
    ) -> Said:
        """A caption, with a way to say less if there is one that would say all of it as it stands.

        Of a caption of the `against` set only what stands before the class noun can be left out:
        the rest is the photo's own caption.

        Args:
            text: The caption.
            slots: Its phrases.
            class_noun: What it shows.
            kind: `object` or `living`.
            prompt_set: Where it came from.

        Raises:
            CaptionTemplateError: The template cannot be used.
        """
        template = self._template(class_noun, kind)
        phrases = {slot: phrase for slot, phrase in slots.items() if phrase}
        if prompt_set == "against":
            before = template.attributes or ATTRIBUTES
            return _against(text, {s: phrases[s] for s in before if s in phrases}, class_noun)
        style = phrases.get("style", "")
        opens = bool(style) and text.startswith(opening(style)) and not is_photograph(style)

        for form in range(template.forms if phrases else 0):

            def write(kept: Mapping[str, str | None], form: int = form) -> str:
                # Without its style a painting would be "a photo of".
                unsaid = {"style": "a picture"} if opens and not kept.get("style") else {}
                return template.render({**kept, **unsaid}, form)

            try:
                if write(phrases) == text:
                    return Said(text, phrases, write)
            except CaptionTemplateError:
                break
        return Said(text)

    def _load(self, class_noun: str, kind: str) -> CaptionTemplate:
        try:
            source = read_text(self._file)
        except (OSError, UnicodeDecodeError) as error:
            raise CaptionTemplateError(f"{self._name} cannot be read: {error}.") from error
        # A dataset may have slots that its template does not use, where none were filled.
        used = [slot for slot in self._slots if slot in source]
        return CaptionTemplate(self._file, self._name, class_noun=class_noun, kind=kind, slots=used)


def _against(text: str, attributes: Mapping[str, str], class_noun: str) -> Said:
    article = article_for(class_noun)
    noun_phrase = article(words([*attributes.values(), class_noun]))
    found = list(word_pattern(noun_phrase).finditer(text))
    if not attributes or len(found) != 1:
        return Said(text)
    start, end = found[0].span()
    around = Surroundings(text[:start], text[end:], capital=text[start].isupper())

    def write(kept: Mapping[str, str | None]) -> str:
        return around.caption({s: kept.get(s) or "" for s in attributes}, class_noun, article)

    return Said(text, attributes, write) if write(attributes) == text else Said(text)


# ---------------------------------------------------------------------------------------- close-up

# What captions call an image of something, as the last word before "of".
_MEDIA = (
    "art artwork cartoon closeup collage drawing engraving etching illustration image linocut "
    "mosaic mural painting panel photo photograph picture portrait poster print render rendering "
    "scene shot sketch snapshot still sticker watercolor watercolour woodcut"
)
_DETERMINED = re.compile(r"(an?|the|one|this)\s+", re.IGNORECASE)
_IMAGE = re.compile(
    rf"(?P<article>(?:an?|the|one|this)\s+)?(?P<rest>(?:[\w'’-]+\s+){{0,5}}?"
    rf"(?:{'|'.join(_MEDIA.split())})\s+of\s)",
    re.IGNORECASE,
)
_FRAMED = re.compile(
    r"\b(?:close[ -]?ups?|macro|zoomed|wide[ -]angle|wide[ -]shot|wide view|long shot|full[ -]body|"
    r"panoram\w+|aerial|bird['’]s[ -]eye|distan\w+|far away|from afar|tightly framed)\b",
    re.IGNORECASE,
)
# What makes a sentence of a caption.
_SENTENCE = re.compile(
    r"[.!?;:]|\b(?:is|are|was|were|has|have|can|shows?|depicts?|features?|there|it|this|these)\b",
    re.IGNORECASE,
)


def close_up(caption: str) -> str:
    """A caption that says it shows a part of the image.

    - One that names its medium says what kind of it: "a photo of a cat" becomes "a close-up photo
      of a cat", "an oil painting of a cat" "a close-up oil painting of a cat".
    - Another phrase with an article is what the close-up shows: "a close-up of a cat on a mat".
    - Anything else, such as tags and sentences, has "close-up, " before it.
    - A caption that speaks of its framing already ("macro", "close-up", "wide shot") is left as it
      is, and so is an empty one.
    """
    if not caption.strip() or _FRAMED.search(caption):
        return caption
    if found := _IMAGE.match(caption):
        article, rest = found["article"] or "", caption[found.start("rest") :]
        if article.strip().lower() in ("a", "an"):
            article = "A " if article[0].isupper() else "a "
        elif not article and rest[0].isupper():
            return "Close-up " + rest[0].lower() + rest[1:]
        return f"{article}close-up {rest}"
    if _DETERMINED.match(caption) and not _SENTENCE.search(caption):
        capital = caption[0].isupper()
        return f"{'A' if capital else 'a'} close-up of {caption[0].lower()}{caption[1:]}"
    return f"close-up, {caption}"
