"""Words of captions, and caption templates: from the phrases of a row to a sentence.

A template is Jinja2 in a sandbox. It is checked when it is loaded, before anything is asked or
drawn: its syntax, names it does not get, slots it forgets, and what it writes for a sample.
docs/captions.md explains templates to those who write one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from jinja2 import Template, TemplateError
from jinja2 import nodes as jinja
from jinja2.meta import find_referenced_templates

from regforge.embedded import phrase_banks
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import read_text, templates_folder
from regforge.prompts.bounded import BoundedEnvironment, forms_of
from regforge.recipe.sections import STANDARD_SLOTS
from regforge.words import did_you_mean, listed, subject_name, words_of

_MOST_CHARACTERS = 2000
_MOST_OPERATIONS = 2000
TAKES_NOUN = frozenset(
    "of with for about from on in by showing featuring depicting containing portraying".split()
)
"""Words after which an opening, "an ad for", needs no "of" before its noun."""

_ALWAYS_THERE = ("class_noun", "kind", "that_is")

_PREPOSITIONS = "of|with|without|in|on|for|from"
_ENDINGS = (
    *(("y", "ies"), ("f", "ves"), ("fe", "ves"), ("man", "men"), ("child", "children")),
    *(("person", "people"), ("mouse", "mice"), ("goose", "geese")),
)
_PHOTOGRAPH = re.compile(
    r"\b(?:photo(?!-)(?:graph(?:ic)?)?s?|snapshot|selfie|polaroid|shot|"
    r"(?<!claymation )(?<!motion )(?<!anime )(?<!cartoon )still(?! life))\b",
    re.IGNORECASE,
)


class CaptionTemplateError(RegforgeError):
    """A caption template that cannot be used; the message names the file and the line."""

    exit_code = EXIT_USAGE


# ------------------------------------------------------------------------------------------ words


def word_pattern(words: str) -> re.Pattern[str]:
    """Match the words as words, in upper or lower case: "sks" in "a SKS dog", not in "masks"."""
    return re.compile(rf"(?<!\w){_spaced(words)}(?!\w)", re.IGNORECASE)


def noun_pattern(class_noun: str) -> re.Pattern[str]:
    """Match a class noun, its telling words ("teapot" of "ceramic teapot"), and their plurals."""
    head, of, rest = re.split(rf"(\s(?:{_PREPOSITIONS})\s|$)", class_noun, maxsplit=1)
    *before, last = head.split()
    start = _spaced(" ".join(before)) + r"\s+" if before else ""
    whole = f"{start}{_or_plural(last)}{_spaced(of + rest) if rest else ''}"
    lasts = dict.fromkeys([last, class_noun.rsplit(maxsplit=1)[-1]])
    turned = [rf"{re.escape(last)}\s+{re.escape(before[0])}"] if len(before) == 1 else []
    options = [whole, *turned, *map(_or_plural, lasts)]  # a toy robot is a robot toy
    return re.compile(rf"(?<!\w)(?:{'|'.join(options)})(?!\w)", re.IGNORECASE)


def plurals(noun: str) -> list[str]:
    """List what the plural of a noun may be; what is no word does no harm."""
    forms = [f"{noun}s", f"{noun}es"]
    for ending, plural in _ENDINGS:
        if noun.lower().endswith(ending):
            forms.append(noun[: -len(ending)] + plural)
    return forms


def _or_plural(noun: str) -> str:
    return f"(?:{'|'.join(map(re.escape, (noun, *plurals(noun))))})"


def _spaced(words: str) -> str:
    """A regular expression for words with any white space between, and before if they have any."""
    before = r"\s+" if words[:1].isspace() else ""
    return before + r"\s+".join(re.escape(word) for word in words.split())


def tidy(text: str) -> str:
    """Take off the traces of slots that were empty: doubled space, stray commas."""
    text = " ".join(text.split())
    if "," in text:
        text = re.sub(r"\s+,", ",", text)
        text = re.sub(r",(?:,)+", ",", text).strip(" ,")
    return text


def opening(style: str) -> str:
    """Begin a caption of this style: "a watercolor painting of", "a photo of" without one.

    A style opens the caption if it starts with an article or ends in "of"; others, such as "in the
    style of Monet" or "cinematic", close it, and the caption opens with "a picture of".
    """
    if not _opens(style):
        return "a picture of" if style else "a photo of"
    return style if style.rsplit(maxsplit=1)[-1] in TAKES_NOUN else f"{style} of"


def closing(style: str) -> str:
    """Return the style if it is one that closes the caption, else nothing."""
    return "" if _opens(style) or not style else style


_BEFORE_TAG = re.compile(
    r"(?:(?:in|on|at|by|near|under|beside|inside|with|against|among)\s+)?(?:(?:an?|the)\s+)?", re.I
)


def tag(phrase: str) -> str:
    """Make a tag of a phrase: "on a garden bench" is "garden bench", "a sketch of" is "sketch"."""
    return phrase[_BEFORE_TAG.match(phrase).end() :].removesuffix(" of")  # type: ignore[union-attr]


def _opens(style: str) -> bool:
    first = style.partition(" ")[0].lower()
    return first in ("a", "an", "the") or style.endswith(" of")


def is_photograph(style: str) -> bool:
    """Tell whether a style is a kind of photograph, as "a close-up photo of" is."""
    return _PHOTOGRAPH.search(style) is not None


def words(parts: Collection[str]) -> str:
    """Join those that are not empty with spaces."""
    return " ".join(part for part in parts if part)


def that_is(class_noun: str) -> str:
    """Join a class noun to what follows: "that is", "that are" or "who is"."""
    banks = phrase_banks.load()
    person = banks.super_category(class_noun, "toy") == "person"
    verb = "are" if banks.number(class_noun) == "plural" else "is"
    return f"{'who' if person else 'that'} {verb}"


@functools.lru_cache(maxsize=64)
def article_for(class_noun: str) -> Callable[[str], str]:
    """Make a function that puts "a" or "an" before a phrase about the noun, if it takes one.

    "red teapot" -> "a red teapot", "owl" -> "an owl", "red glasses" -> "red glasses".
    """
    banks = phrase_banks.load()
    takes = functools.lru_cache(maxsize=1024)(banks.takes_article)
    word = functools.lru_cache(maxsize=4096)(phrase_banks.indefinite_article)
    noun, noun_takes = class_noun.casefold(), banks.takes_article(class_noun)

    def article(text: str) -> str:
        text = text.strip()
        if not text:
            return ""
        if not (noun_takes if text.casefold().endswith(noun) else takes(text)):
            return text
        return f"{word(text.partition(' ')[0])} {text}"

    return article


def instance_caption(identifier: str | None, class_noun: str) -> str:
    """Caption a photo of the subject of which nothing else is known: "a photo of a sks dog".

    With an article, as DreamBooth's "a [identifier] [class noun]" and DreamBench's prompts have it,
    and as the naive caption "a photo of a dog" differs from it in the identifier alone.
    """
    return phrase_banks.with_noun("a photo of a {}", subject_name(identifier, class_noun))


# ------------------------------------------------------------------------------- prompt syntax

# User interfaces to image generators understand it, and no trainer does: weights and emphasis are
# taken off, "a (sks cat:1.3), [blurry] <lora:x:0.8>" is "a sks cat, blurry". What stands for
# several texts at once cannot be: `{red|blue}`, `[red:blue:0.5]`, `__color__`.
_SEVERAL = re.compile(
    r"\{[^{}]*[|$][^{}]*\}|\[[^\[\]|]{0,200}\|[^\[\]]*\]|\[[^\[\]:]*:[^\[\]:]*:[^\[\]]*\]"
    r"|\[[^\[\]:]*:[\d.]+\]|(?<!\w)__[\w/*.-]{1,100}?__(?!\w)"
)
_NETWORK = re.compile(r"<(?:lora|lyco|lycoris|hypernet|hypernetwork|ti|embedding):[^<>]*>", re.I)
_BREAK = re.compile(r"\s*,?\s*(?<!\w)(?:BREAK|ADDCOMM|ADDBASE|ADDCOL|ADDROW)(?!\w)\s*,?\s*")
_WEIGHT = re.compile(r"[(\[{<]([^()\[\]{}<>]*?)\s*:\s*[+-]?\d*\.?\d+\s*[)\]}>]")
_TWICE = re.compile(r"\(\s*\(([^()]*)\)\s*\)")
_SQUARE = re.compile(r"\[([^\[\]]*)\]|\{([^{}]*)\}")
# Round brackets are English behind a noun, "a portrait (my cat)", and emphasis in other places.
_ROUND = re.compile(
    r"(^|[,(]\s*|\b(?:an?|the|my|of|in|on|at|with|and|by|from)\s+)\(([^()]*)\)(?!\w)", re.I
)
_SIGNS = re.compile(r"(?<=[\w\ue000])(?:\+{2,}|-{2,})(?=[\s,.)]|$)")
_KEPT = "\ue000"
_PRIVATE = re.compile("[\ue000-\ue006]")
_ESCAPED = dict(zip("()[]{}", "\ue001\ue002\ue003\ue004\ue005\ue006", strict=True))
_MOST_BRACKETS = 20  # in one another


def several_texts(caption: str) -> str | None:
    """Find the part of a caption that stands for several texts, such as `{red|blue}`."""
    found = _SEVERAL.search(caption)
    return found[0] if found else None


def without_syntax(caption: str, identifier: str | None = None) -> str:
    """Take prompt syntax off a caption; the identifier stays as it is: "[V]", "<new1>"."""
    if _PRIVATE.search(caption):  # they stand for something here
        return caption
    hidden = re.compile(re.escape(identifier), re.IGNORECASE) if identifier else None
    names = hidden.findall(caption) if hidden else []
    text = hidden.sub(_KEPT, caption) if hidden else caption
    before = text
    text = re.sub(r"\\([()\[\]{}])", lambda m: _ESCAPED[m[1]], text)
    text = _BREAK.sub(", ", _NETWORK.sub(" ", text))
    for _ in range(_MOST_BRACKETS):
        bare, text = text, _unbracketed(text)
        if bare == text:
            break
    text = _SIGNS.sub("", text)
    text = text.translate({ord(sign): char for char, sign in _ESCAPED.items()})
    if text == before:
        return caption
    text = re.sub(r"\s+([,.;:!?])", r"\1", tidy(text))
    parts = iter(names)
    return re.sub(_KEPT, lambda _: next(parts), text)


def _unbracketed(text: str) -> str:
    text = _WEIGHT.sub(r"\1", _TWICE.sub(r"\1", text))
    text = _SQUARE.sub(lambda found: found[1] if found[1] is not None else found[2], text)
    return _ROUND.sub(r"\1\2", text)


# --------------------------------------------------------------------------------------- templates


@functools.lru_cache(maxsize=65_536)
def _spelled(slot: str, phrase: str) -> str:
    return json.dumps([slot, words_of(phrase)])


def _drawn(phrases: Mapping[str, str | None]) -> bytes:
    """32 random bytes that follow from the phrases of a caption."""
    chosen = [_spelled(slot, phrase) for slot, phrase in sorted(phrases.items()) if phrase]
    return hashlib.sha256(f"[{', '.join(chosen)}]".encode()).digest()


def template_for(
    phrases: Mapping[str, str | None], templates: Sequence[tuple[CaptionTemplate, float]]
) -> CaptionTemplate:
    """Choose the template of a caption with these phrases by the shares: the same each time."""
    if len(templates) > 1:
        at = int.from_bytes(_drawn(phrases)[8:16]) / 2**64 * sum(share for _, share in templates)
        for template, share in templates:
            at -= share
            if at < 0:
                return template
    return templates[-1][0]


class CaptionTemplate:
    """A checked template of one class noun.

    It has to use each of the recipe's slots, and never writes the identifier.

    Attributes:
        name: What errors and the dataset call it, such as `caption/object.j2`.
        attributes: The slots that its first form puts right before the class noun, in that order.
        forms: How many forms it has: whole templates, with a line of dashes between them. Captions
            take turns with them, so that a model does not learn one order of words.

    Raises:
        CaptionTemplateError: It cannot be used; the message names the line.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        *,
        class_noun: str,
        kind: str,
        slots: Sequence[str] = (),
        identifier: str | None = None,
    ) -> None:
        self.name = name
        self._file = file
        self._noun = " ".join(class_noun.split())
        given = {"class_noun": self._noun, "kind": kind, "that_is": that_is(self._noun)}
        self._blank = dict.fromkeys((*STANDARD_SLOTS, *slots), "") | given
        self._environment = BoundedEnvironment(
            [file.parent, templates_folder()],
            {
                "a": article_for(self._noun),
                "words": words,
                "listed": listed,
                "opening": opening,
                "closing": closing,
                "tag": tag,
            },
            most_characters=5 * _MOST_CHARACTERS,
            most_operations=_MOST_OPERATIONS,
            forms=True,
        )
        self._templates: list[Template] = []
        self._check_subject(slots, identifier)
        try:
            self.forms = len(forms_of(read_text(file)))
        except (OSError, UnicodeDecodeError) as error:
            raise self._failure(error) from error
        self._names = [f"{file.name}#{number}" for number in range(self.forms)]
        for form, form_name in enumerate(self._names):
            self._check_names(form_name, slots)
            try:
                self._templates.append(self._environment.get_template(form_name))
            except (TemplateError, OSError, UnicodeDecodeError) as error:
                raise self._failure(error) from error
            self._check_output(form, identifier)
        self.attributes = self._slots_before_noun()

    def form(self, phrases: Mapping[str, str | None]) -> int:
        """Choose the form of a caption with these phrases: any of them, the same each time.

        And the same for "sky-blue" and "sky blue", or they would make two captions.
        """
        return int.from_bytes(_drawn(phrases)[:8]) % self.forms if self.forms > 1 else 0

    def render(self, phrases: Mapping[str, str | None], form: int = 0) -> str:
        """Write the caption of a row; slots that are missing, empty or None are left out.

        Raises:
            CaptionTemplateError: The template fails on these phrases.
        """
        variables = self._blank.copy()
        for slot, phrase in phrases.items():
            if phrase:
                variables[slot] = phrase
        try:
            return tidy(self._environment.render(self._templates[form], variables))
        except Exception as error:  # a template is a program, and may raise whatever Python can
            raise self._failure(error) from error

    def _check_subject(self, slots: Sequence[str], identifier: str | None) -> None:
        if identifier and word_pattern(identifier).search(self._noun):
            raise CaptionTemplateError(
                f"The class noun {self._noun!r} contains the identifier {identifier!r}.",
                hint="Regularization captions must never name it: leave it out of "
                "`subject.class_noun`.",
            )
        if taken := [slot for slot in slots if slot in _ALWAYS_THERE]:
            raise CaptionTemplateError(f"A slot cannot be called {taken[0]!r}; templates know it.")

    def _check_names(self, form: str, slots: Sequence[str]) -> None:
        used: set[str] = set()
        todo, done = [form], set()
        while todo:
            source_name = todo.pop()
            done.add(source_name)
            shown = self.name if source_name in self._names else source_name
            try:
                tree, names = self._environment.parsed(source_name)
            except (TemplateError, OSError, UnicodeDecodeError) as error:
                raise self._failure(error, shown) from error
            for name in sorted(names - self._blank.keys()):
                known = ", ".join((*_ALWAYS_THERE, *(s for s in self._blank if s != "class_noun")))
                lines = [node.lineno for node in tree.find_all(jinja.Name) if node.name == name]
                raise CaptionTemplateError(
                    f"{shown}:{min(lines, default=1)}: there is no {name!r} here."
                    f"{did_you_mean(name, self._blank)}",
                    hint=f"A caption template knows {known}.",
                )
            used |= names
            for other in find_referenced_templates(tree):
                if other is None:
                    raise CaptionTemplateError(
                        f"{shown}:1: name the template to include in quotation marks."
                    )
                if other not in done:
                    todo.append(other)
        if "class_noun" not in used:
            raise CaptionTemplateError(
                f"{self.name}:1: the template never uses class_noun.",
                hint="Every caption says what it shows: {{ class_noun | a }}.",
            )
        if forgotten := [slot for slot in slots if slot not in used]:
            raise CaptionTemplateError(
                f"{self.name}:1: the template never uses the recipe's slot {forgotten[0]!r}.",
                hint=f"Put {{{{ {forgotten[0]} }}}} into the template, or take the slot out of "
                "`prompts.slots`.",
            )

    def _check_output(self, form: int, identifier: str | None) -> None:
        every = {slot: "..." for slot in self._blank if slot not in _ALWAYS_THERE}
        bare, full = self.render({}, form), self.render(every, form)
        if self._noun.casefold() not in bare.casefold():
            raise CaptionTemplateError(
                f"{self.name}:1: without slots the template writes {bare!r}, which does not name "
                f"the class noun {self._noun!r}."
            )
        if identifier and (found := word_pattern(identifier).search(full)):
            raise CaptionTemplateError(
                f"{self.name}:1: the template puts the identifier {found[0]!r} into every caption: "
                f"{full!r}.",
                hint="Regularization captions must never name it; see `subject.identifier`.",
            )
        if several := several_texts(full):
            raise CaptionTemplateError(
                f"{self.name}:1: the template writes {several!r} as it stands.",
                hint="Put what varies into a slot of `prompts.slots`, a phrase each.",
            )
        if len(full) > _MOST_CHARACTERS:
            raise CaptionTemplateError(f"{self.name}:1: it writes {len(full)} characters.")

    def _slots_before_noun(self) -> tuple[str, ...]:
        """The slots before the noun, found by where the phrases end up, in any template."""
        marks = {f"{slot}slot": slot for slot in self._blank if slot not in _ALWAYS_THERE}
        text = self.render({slot: mark for mark, slot in marks.items()})
        before = word_pattern(self._noun).split(text)[0].split()
        found: list[str] = []
        while before and before[-1] in marks:
            found.insert(0, marks[before.pop()])
        return tuple(found)

    def _failure(self, error: Exception, shown: str | None = None) -> CaptionTemplateError:
        line = getattr(error, "lineno", None)
        if line is None:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(self._file)]
            line = lines[-1] if lines else 1
        message = str(getattr(error, "message", None) or error) or type(error).__name__
        if isinstance(error, OSError) and not isinstance(error, TemplateError):
            message = f"it cannot be read: {error.strerror or error}"
        return CaptionTemplateError(f"{shown or self.name}:{line}: {message.rstrip('.')}.")
