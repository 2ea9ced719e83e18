"""Captions that are lists of tags: "ohwx, 1girl, solo, brown hair, sitting, window, indoors".

The identifier leaves, the class noun comes as a tag, tags of what the subject looks like give way
to others of their kind, and the rest stays: a list of tags stays one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regforge.prompts.captions import noun_pattern, word_pattern
from regforge.prompts.stated import kinds_of_slot
from regforge.prompts.word_classes import (
    COPULAS,
    DETERMINERS,
    GARMENTS,
    HAIR,
    HAIR_HUES,
    HAIRY,
    PREPOSITIONS,
    is_adjective,
    is_form,
    is_hue,
    is_surface,
)

_FEWEST = 3
_TAG_LIKE = 0.75
_MOST_WORDS = 4
_BOORU = re.compile(
    r"^(?:\d\+?(?:girl|boy|other)s?|solo|masterpiece|best quality|looking at viewer|rating \w+|"
    r"no humans|simple background|score \d.*|absurdres|highres)$",
    re.IGNORECASE,
)
_SUBJECT = "subject"


@dataclass(frozen=True)
class TagList:
    """A photo's caption of tags, with a place for another thing of the class.

    Attributes:
        tags: The tags, without the identifier; the class noun's is `_SUBJECT`.
        kinds: What kind of attribute each tag states of the subject, see `stated.KINDS`; empty for
            the others.
        underscored: Whether the caption writes "brown_hair".
        person: Whether the subject is a person; None if nobody knows.
        fixed: Words that keep an attribute from being varied, by its kind.
    """

    tags: Sequence[str]
    kinds: Sequence[str]
    underscored: bool
    person: bool | None
    fixed: Mapping[str, str]
    style: str | None = None
    capital: bool = False

    def caption(self, attributes: Mapping[str, str], noun: str, _article: object = None) -> str:
        """The tags with another thing of the class.

        Args:
            attributes: What it looks like, by slot; empty ones are left out.
            noun: The class noun.
        """
        new = {
            slot: phrase
            for slot, phrase in attributes.items()
            if phrase and self.fixed.keys().isdisjoint(kinds_of_slot(slot, person=self.person))
        }
        made: list[str] = []
        at = 0
        for tag, kind in zip(self.tags, self.kinds, strict=True):
            if kind == _SUBJECT:
                made.append(noun)
                at = len(made)
            elif not kind:
                made.append(tag)
            else:
                same = [s for s in new if kind in kinds_of_slot(s, person=self.person)]
                made += [self._tag(new.pop(slot), tag) for slot in same]
        added = [self._tag(phrase, "") for phrase in new.values()]
        made[at:at] = [tag for tag in added if tag not in made]
        return ", ".join(tag.replace(" ", "_") if self.underscored else tag for tag in made)

    def _tag(self, phrase: str, instead: str) -> str:
        """A phrase as a tag: "golden-haired" as "golden hair", "white" for "orange fur"."""
        if phrase.endswith("-haired"):
            return f"{phrase.removesuffix('-haired').replace('-', ' ')} hair"
        if self.person and is_hue(phrase):
            return f"{phrase.replace('-', ' ')} hair"
        last = instead.rsplit(" ", 1)[-1].lower()
        if last in _COATS:
            return f"{phrase} {last}"
        return phrase

    @property
    def background(self) -> str | None:
        """The tags that stay."""
        return (
            ", ".join(tag for tag, kind in zip(self.tags, self.kinds, strict=True) if not kind)
            or None
        )


def tag_list(
    caption: str, class_noun: str, identifier: str | None, *, person: bool | None, varied: bool
) -> TagList | None:
    """A caption as tags, or None if it is no list of tags that names the subject in a tag.

    Args:
        caption: One line.
        class_noun: What the subject is.
        identifier: The subject's.
        person: Whether the subject is a person; None if nobody knows.
        varied: Whether tags of its looks give way; without, all stay.
    """
    underscored = re.search(r"\w_\w", caption) is not None and not re.search(
        r"\w \w", re.sub(r"\([^)]*\)", "", caption)
    )
    tags = [" ".join(tag.replace("_", " ").split()) for tag in caption.strip(" .,").split(",")]
    tags = [tag for tag in tags if tag]
    if not _is_list(tags):
        return None
    noun = noun_pattern(class_noun)
    named = word_pattern(identifier.replace("_", " ")) if identifier else None
    place = next((n for n, tag in enumerate(tags) if named and named.search(tag)), None)
    if place is None:
        place = next((n for n, tag in enumerate(tags) if _names(tag, noun)), None)
    if place is None:
        return None
    rest = named.sub(" ", tags[place]) if named else tags[place]
    rest = " ".join(noun.sub(" ", rest).split())
    booru = _BOORU.match(rest) is not None
    if not booru and not all(is_adjective(word) for word in rest.lower().split()):
        return None
    made: list[str] = []
    kinds: list[str] = []
    for number, tag in enumerate(tags):
        if number == place:
            made.append(tag)
            kinds.append(_SUBJECT)
            if booru:
                made.append(rest)
                kinds.append("")
            continue
        text = " ".join(named.sub(" ", tag).split()) if named else tag
        if not text or (_names(text, noun) and noun.sub("", text).strip() == ""):
            continue  # the class noun stands there already
        if varied and _states_looks(text, class_noun):
            continue  # "white teapot" of "sks, white teapot, table"
        made.append(text)
        people = (True, False) if person is None else (person,)
        found = (_kind(text.lower(), each) for each in people if varied)
        kinds.append(next(filter(None, found), ""))
    clothes = [tag for tag, kind in zip(made, kinds, strict=True) if kind == "clothes"]
    fixed = {"clothes": clothes[0]} if clothes else {}
    kinds = ["" if kind == "clothes" else kind for kind in kinds]
    acts = " ".join(word for word in rest.split() if word.lower().endswith("ing"))
    rest = acts if varied else rest  # "smiling" is no look of the subject
    if rest and not booru:
        made.insert(made.index(tags[place]) + 1, rest)
        kinds.insert(kinds.index(_SUBJECT) + 1, "")
    return TagList(made, kinds, underscored, person, fixed)


def _is_list(tags: Sequence[str]) -> bool:
    booru = any(_BOORU.match(tag) for tag in tags)
    if len(tags) < (2 if booru else _FEWEST):
        return False
    like = sum(map(_is_tag, tags))
    return like >= _TAG_LIKE * len(tags)


def _is_tag(tag: str) -> bool:
    words = tag.lower().split()
    if _BOORU.match(tag):
        return True
    if len(words) > _MOST_WORDS or any(word in DETERMINERS | COPULAS for word in words):
        return False
    return words[0] not in PREPOSITIONS and not re.search(r"[.!?;:]", tag)


def _names(tag: str, noun: re.Pattern[str]) -> bool:
    """Whether a tag is the class noun, perhaps described: "fluffy cat", and not "cat bed"."""
    found = noun.search(tag)
    return found is not None and all(
        is_adjective(word) or word == "1" for word in noun.sub(" ", tag).lower().split()
    )


def _states_looks(tag: str, class_noun: str) -> bool:
    """Whether a tag is the class noun, of one, with what it looks like."""
    *describing, last = tag.lower().split()
    one = last in class_noun.lower().split()  # "white robot" of a robot toy
    looks = any(is_hue(word) or is_surface(word) or is_form(word) for word in describing)
    return one and looks and all(map(is_adjective, describing))


def _kind(tag: str, person: bool) -> str:
    """The kind of attribute that a tag states of the subject, or ""."""
    words = tag.split()
    *describing, last = words
    kind = ""
    if all(map(is_form, words)):
        kind = "form"
    elif person and last in HAIR:
        kind = "hair" if any(word in HAIR_HUES or is_hue(word) for word in describing) else ""
    elif person:
        kind = "hair" if tag in HAIRY else "clothes" if set(words) & GARMENTS else ""
    elif last in _COATS and describing:
        kind = "hue" if any(map(is_hue, describing)) else "surface"
    elif any(map(is_hue, words)) and all(is_hue(word) or word in _SHADES for word in words):
        kind = "hue"
    elif all(map(is_surface, words)):
        kind = "surface"
    return kind


_COATS = frozenset(("fur", "coat", "body", "feathers"))
_SHADES = frozenset(("and", "light", "dark", "bright", "pale", "deep"))
