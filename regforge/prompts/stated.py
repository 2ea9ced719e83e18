"""What a caption says of its subject's looks outside the subject's own noun phrase, or in tags.

    a woman | with short brown hair wearing a red dress      hair, clothes
    a robot toy | . The robot is painted a glossy blue.      hue, surface
    a robot toy | with black hands on a white table          nothing: these are of other things

Where the rest of a caption states an attribute, another one before the noun would contradict it. A
describing word counts as the subject's where the noun behind it is the subject, its hair, its fur
or its surface, and where there is no noun behind it, unless the sentence is about another thing. In
doubt it counts. In a list of tags ("ohwx, 1girl, solo, brown hair, sitting, window") the tags of
what the subject looks like give way to others of their kind: a list of tags stays one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from regforge.prompts.captions import noun_pattern, word_pattern
from regforge.prompts.noun_phrases import is_kindred
from regforge.prompts.word_classes import (
    BODIES,
    BUILDS,
    COPULAS,
    DEFINITE,
    DETERMINERS,
    GARMENTS,
    HAIR,
    HAIR_HUES,
    HAIRY,
    MARKS,
    PREPOSITIONS,
    PRONOUNS,
    Word,
    ends_phrase,
    is_adjective,
    is_form,
    is_hue,
    is_surface,
)

_OF_THINGS = {
    **dict.fromkeys(("color", "colour"), "hue"),
    **dict.fromkeys(("texture", "material", "pattern", "finish"), "surface"),
    **dict.fromkeys(("shape", "size"), "form"),
}
_OF_PEOPLE = _OF_THINGS | {
    **dict.fromkeys(("color", "colour", "hair"), "hair"),
    **dict.fromkeys(("texture", "material", "clothes", "clothing", "outfit"), "clothes"),
    "build": "form",
}
_FINISHED = frozenset(
    "painted colored coloured upholstered covered wrapped coated finished clad trimmed".split()
)
_MADE = frozenset(
    "made crafted carved built constructed knitted sculpted woven molded cast".split()
)
_SHADES = frozenset(
    "shade shades swirl swirls mix mixture blend combination hue hues tone tones".split()
)
_THE_SUBJECT = frozenset("subject figure character object item creature thing one".split())
_LONGEST_CLAUSE = 60
_IMAGE = r"(?:photo\w*|picture|image|portrait|shot|film|drawing|sketch|still|illustration)"
_COLORLESS_IMAGE = re.compile(
    rf"\b(?:black[- ]and[- ]white|b&w) (?:\w+ )?{_IMAGE}|"
    rf"(?:{_IMAGE}|taken|drawn|rendered) in (?:black and white|b&w)|"
    r"(?:^|, ?)(?:in )?black[- ]and[- ]white(?:,|$)|"
    r"\b(?:monochrome|gr[ae]y ?scale|sepia|line ?art)\b",
    re.IGNORECASE,
)
"""Images without colours, of which nothing can be "bright red"."""

_Kinds = Mapping[str, Callable[[str], bool]]
_THINGS: _Kinds = {"hue": is_hue, "surface": is_surface, "form": is_form}


def kinds_of_slot(slot: str, *, person: bool | None) -> tuple[str, ...]:
    """List the kinds of attributes that a slot varies: hue, surface, form, hair, clothes.

    The banks' colours of people are those of their hair. A slot of the user's own has none.
    """
    of = [] if person else [_OF_THINGS]
    of += [] if person is False else [_OF_PEOPLE]
    return tuple(dict.fromkeys(kinds[slot] for kinds in of if slot in kinds))


def stated(
    words: Sequence[Word],
    hidden: Collection[int],
    *,
    category: str | None,
    caption: str,
    apposed: int | None = None,
) -> dict[str, str]:
    """Find what kinds of attributes a caption states of its subject, and with which words.

    Args:
        words: Of the whole caption, see `word_classes.words_of`.
        hidden: Places of words that do not count: the subject's own phrase, and those of others.
        category: Of the class noun, see `noun_phrases.category_of`; None if nobody knows.
        caption: The text.
        apposed: The place behind the subject's phrase, where "a grey sloth" of "sks plushie, a
            grey sloth, on a bed" may say what it is.
    """
    # A class noun that no bank knows may be a person's, or a thing's.
    found: dict[str, str] = {}
    for each in ("person", "") if category is None else (category,):
        found |= _Looks(words, hidden, each, caption, apposed).stated()
    return found


@dataclass(frozen=True)
class _Looks:
    words: Sequence[Word]
    hidden: Collection[int]
    category: str
    caption: str
    apposed: int | None

    def stated(self) -> dict[str, str]:
        words, person = self.words, self.category == "person"
        found: dict[str, str] = {}

        def state(kind: str, first: int, last: int) -> None:
            last = min(last, len(words) - 1)
            found.setdefault(kind, self.caption[words[first].start : words[last].end])

        if image := _COLORLESS_IMAGE.search(self.caption):
            found["hair" if person else "hue"] = image[0].strip(" ,")
        place = 0
        while place < len(words):
            word = words[place].lower
            last = place
            if place not in self.hidden and not words[place].kind:
                of = words[place + 1].lower if place + 1 < len(words) else ""
                if person and word in GARMENTS:
                    state("clothes", place, self._garment(place))
                elif person and (word in HAIRY or word.endswith("-haired")):
                    state("hair", place, place)
                elif not person and word in _MADE and of in ("of", "from", "out", "in"):
                    state("surface", place, place + 2)
                elif not person and word in MARKS:
                    state("surface", place, place)
                    state("hue", place, place)
                if is_adjective(word):
                    last = self._chain(place)
                    for kind, first in self._of_chain(place, last).items():
                        state(kind, first, last + (self._noun(last) is not None))
            place = last + 1
        return found

    def _chain(self, place: int) -> int:
        """The last of the describing words that go together: "long, wavy, light brown"."""
        words, last = self.words, place
        for k in range(place + 1, len(words)):
            word, before = words[k], words[k - 1].lower
            joins = word.gap == "" or (word.gap == "," and not word.lower.endswith("ing"))
            if k in self.hidden or word.kind or not joins:
                break
            if is_adjective(word.lower):
                last = k
            elif word.lower not in ("and", "or", "&") or before in ("and", "or", "&"):
                break
        return last

    def _noun(self, last: int) -> Word | None:
        """The noun that describing words stand before, if there is one."""
        if last + 1 >= len(self.words) or self.words[last + 1].gap not in ("", '"'):
            return None
        following = self.words[last + 1]
        if following.kind or following.lower in BODIES | HAIR | BUILDS | MARKS:
            return following
        ends = ends_phrase(self.words, last + 1) and not _is_plural(following)
        return None if ends else following

    def _of_chain(self, first: int, last: int) -> dict[str, int]:
        """The kinds that describing words state of the subject, and where each begins."""
        noun = self._noun(last)
        kinds: _Kinds = {}
        if noun is None:
            kinds = self._of_predicate(first, last)
        elif last + 1 not in self.hidden:
            ahead = self.words[first - 1] if first else None
            definite = ahead is not None and ahead.lower in DEFINITE
            apposed = ahead is not None and ahead.gap == "," and ahead.lower in ("a", "an", "the")
            again = bool(noun.kind) or (definite and is_kindred(noun, self.category))
            again = again or (apposed and first - 1 == self.apposed)
            kinds = self._of_noun(noun.lower, again=again or self._says_what_it_is(first))
        found: dict[str, int] = {}
        for k in range(first, last + 1):
            for kind, holds in kinds.items():
                if holds(self.words[k].lower):
                    found.setdefault(kind, k)
        return found

    def _of_noun(self, noun: str, *, again: bool) -> _Kinds:
        """The kinds that words before a noun can state; `again` if it is the subject itself."""
        if self.category != "person":
            walls = noun in ("walls", "facade", "siding", "bricks")
            again = again or (self.category == "building" and walls)
            return _THINGS if again or noun in BODIES else {}
        if noun in HAIR:
            return {"hair": lambda word: word in HAIR_HUES or is_hue(word)}
        return {"form": is_form} if again or noun in BUILDS else {}

    def _of_predicate(self, first: int, last: int) -> _Kinds:
        """The kinds that words with no noun behind them can state."""
        head, linked = self._clause_head(first)
        itself = self._is_noun_itself(first, last) and not self._says_what_it_is(first)
        if itself or self._is_another(head):
            return {}
        if self.category != "person":
            return _THINGS
        ahead = self.words[first - 1].lower if first else ""
        if ahead in HAIR or (head is not None and head.lower in HAIR):
            return {"hair": is_hue}  # "her hair dyed pink"
        return {"form": is_form} if linked else {}

    def _is_noun_itself(self, first: int, last: int) -> bool:
        """Whether describing words are a thing of their own: "next to an orange", "on the stone".

        Without a verb, those behind a preposition are a place or a light: "on grass", "in gold".
        """
        words = self.words
        if first == 0 or words[first].gap:
            return False
        ahead = words[first - 1].lower
        if first > 1 and words[first - 2].lower in _FINISHED | _MADE | _SHADES:
            return False
        colored = ahead == "in" and is_hue(words[last].lower)
        return ahead in DETERMINERS or (ahead in PREPOSITIONS and not colored)

    def _clause_head(self, place: int) -> tuple[Word | None, bool]:
        """What the clause before a place is about ("The wall behind it is"); if it has a verb."""
        words, start = self.words, place
        while start > max(0, place - _LONGEST_CLAUSE) and not set(".;:!?,") & set(words[start].gap):
            start -= 1
            word, following = words[start].lower, words[start + 1].lower
            if start < place - 1 and (
                word in ("while", "but", "whose")
                or (word == "and" and following in DETERMINERS | PRONOUNS)
            ):
                start += 1
                break
        verbs = [k for k in range(start, place) if words[k].lower in COPULAS]
        if not verbs:
            return None, False
        for k in range(start, verbs[0]):
            word = words[k].lower
            if words[k].kind or word in PRONOUNS:
                if k + 1 == verbs[0] or words[k + 1].lower not in ("'s", "’s"):
                    return words[k], True
            elif word not in DETERMINERS and word not in ("'s", "’s"):
                is_noun = not is_adjective(word) and not ends_phrase(words, k)
                if is_noun or (k > 0 and _is_plural(words[k])):
                    return words[k], True
        return None, True

    def _says_what_it_is(self, first: int) -> bool:
        """Whether describing words are in "it is a brown tabby"."""
        if first < 2 or self.words[first - 1].lower not in ("a", "an"):
            return False
        verb = self.words[first - 2].lower.replace("’", "'")
        if verb in ("it's", "he's", "she's"):
            return True
        return verb in ("is", "was") and not self._is_another(self._clause_head(first)[0])

    def _is_another(self, head: Word | None) -> bool:
        """Whether a clause is about another thing than the subject."""
        if head is None or head.kind or is_kindred(head, self.category):
            return False
        return head.lower not in PRONOUNS | BODIES | HAIR | BUILDS | _THE_SUBJECT

    def _garment(self, place: int) -> int:
        """The last word of what is worn: "wearing a red dress"."""
        for k in range(place + 1, min(place + 6, len(self.words))):
            if self.words[k].gap:
                break
            if self.words[k].lower in GARMENTS:
                return k
        return place


def _is_plural(word: Word) -> bool:
    """Whether a word ends in "s" as nouns do: "hands" of "black hands", and not "is"."""
    is_noun = len(word.text) > 3 and word.lower not in COPULAS | PRONOUNS | DETERMINERS
    return is_noun and word.lower.endswith("s") and not word.lower.endswith("ss")


# -------------------------------------------------------------------------------- lists of tags

_FEWEST = 3
_TAG_LIKE = 0.75
_MOST_WORDS = 4
_BOORU = re.compile(
    r"^(?:\d\+?(?:girl|boy|other)s?|solo|masterpiece|best quality|looking at viewer|rating \w+|"
    r"no humans|simple background|score \d.*|absurdres|highres)$",
    re.IGNORECASE,
)
_SUBJECT = "subject"
_COATS = frozenset(("fur", "coat", "body", "feathers"))
_TONES = frozenset(("and", "light", "dark", "bright", "pale", "deep"))


@dataclass(frozen=True)
class TagList:
    """A photo's caption of tags, with a place for another thing of the class.

    Attributes:
        tags: Each tag without the identifier, and what kind of attribute it states of the subject;
            `_SUBJECT` for the class noun's place, empty for the others.
        underscored: Whether the caption writes "brown_hair".
        person: Whether the subject is a person; None if nobody knows.
        fixed: Words that keep an attribute from being varied, by its kind.
    """

    tags: Sequence[tuple[str, str]]
    underscored: bool
    person: bool | None
    fixed: Mapping[str, str]
    style: str | None = None

    def caption(self, attributes: Mapping[str, str], noun: str, _article: object = None) -> str:
        """List the tags with another thing of the class; `attributes` are by slot."""
        kinds = {slot: kinds_of_slot(slot, person=self.person) for slot in attributes}
        new = {
            slot: phrase
            for slot, phrase in attributes.items()
            if phrase and self.fixed.keys().isdisjoint(kinds[slot])
        }
        made: list[str] = []
        at = 0
        for tag, kind in self.tags:
            if kind == _SUBJECT:
                made.append(noun)
                at = len(made)
            elif not kind:
                made.append(tag)
            else:
                made += [self._tag(new.pop(s), tag) for s in list(new) if kind in kinds[s]]
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
        return f"{phrase} {last}" if last in _COATS else phrase

    @property
    def background(self) -> str | None:
        """The tags that stay."""
        return ", ".join(tag for tag, kind in self.tags if not kind) or None


def tag_list(
    caption: str, class_noun: str, identifier: str | None, *, person: bool | None, varied: bool
) -> TagList | None:
    """Read a caption as tags; None if it is no list of tags that names the subject in a tag.

    Tags of the subject's looks give way to others where they are `varied`, else all stay.
    """
    unbracketed = re.sub(r"\([^)]*\)", "", caption)
    underscored = bool(re.search(r"\w_\w", caption)) and not re.search(r"\w \w", unbracketed)
    tags = [" ".join(tag.replace("_", " ").split()) for tag in caption.strip(" .,").split(",")]
    tags = [tag for tag in tags if tag]
    if not _is_list(tags):
        return None
    noun = noun_pattern(class_noun)
    named = word_pattern(identifier.replace("_", " ")) if identifier else None
    naming = [n for n, tag in enumerate(tags) if named and named.search(tag)]
    naming += [n for n, tag in enumerate(tags) if _names(tag, noun)]
    if not naming:
        return None
    place = naming[0]
    rest = named.sub(" ", tags[place]) if named else tags[place]
    rest = " ".join(noun.sub(" ", rest).split())
    booru = _BOORU.match(rest) is not None
    if not booru and not all(is_adjective(word) for word in rest.lower().split()):
        return None
    made: list[tuple[str, str]] = []
    for number, tag in enumerate(tags):
        text = " ".join(named.sub(" ", tag).split()) if named else tag
        if number == place:
            if varied and not booru:  # "smiling" is no look of the subject
                rest = " ".join(word for word in rest.split() if word.lower().endswith("ing"))
            made += [("", _SUBJECT), *([(rest, "")] if rest else [])]
        elif text and noun.fullmatch(text) is None and not (varied and _states(text, class_noun)):
            people = (True, False) if person is None else (person,)
            kinds = (_kind(text.lower(), each) for each in people if varied)
            made.append((text, next(filter(None, kinds), "")))
    clothes = [tag for tag, kind in made if kind == "clothes"]
    made = [(tag, "" if kind == "clothes" else kind) for tag, kind in made]
    return TagList(made, underscored, person, {"clothes": clothes[0]} if clothes else {})


def _is_list(tags: Sequence[str]) -> bool:
    booru = any(_BOORU.match(tag) for tag in tags)
    enough = len(tags) >= (2 if booru else _FEWEST)
    return enough and sum(map(_is_tag, tags)) >= _TAG_LIKE * len(tags)


def _is_tag(tag: str) -> bool:
    words = tag.lower().split()
    if _BOORU.match(tag):
        return True
    if len(words) > _MOST_WORDS or any(word in DETERMINERS | COPULAS for word in words):
        return False
    return words[0] not in PREPOSITIONS and not re.search(r"[.!?;:]", tag)


def _names(tag: str, noun: re.Pattern[str]) -> bool:
    """Whether a tag is the class noun, perhaps described: "fluffy cat", and not "cat bed"."""
    rest, found = noun.subn(" ", tag)
    return found > 0 and all(is_adjective(word) or word == "1" for word in rest.lower().split())


def _states(tag: str, class_noun: str) -> bool:
    """Whether a tag is the class noun, of one, with what it looks like: "white teapot"."""
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
    elif any(map(is_hue, words)) and all(is_hue(word) or word in _TONES for word in words):
        kind = "hue"
    elif all(map(is_surface, words)):
        kind = "surface"
    return kind
