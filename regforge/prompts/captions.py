"""Caption templates: from the phrases of a row to a sentence.

A template is Jinja2 in a sandbox. It is checked when it is loaded, before anything is asked or
drawn: its syntax, names it does not get, slots it forgets, and what it writes for a sample. Knows
nothing about where phrases come from or how rows are drawn. docs/captions.md explains templates to
those who write one.
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

from regforge import resources
from regforge.embedded import phrase_banks
from regforge.embedded.bank_files import suggestion
from regforge.embedded.english import words_of
from regforge.errors import EXIT_USAGE, RegforgeError
from regforge.files import read_text
from regforge.prompts.bounded import BoundedEnvironment, forms_of
from regforge.recipe.prompts import STANDARD_SLOTS

_MOST_CHARACTERS = 2000
_MOST_OPERATIONS = 2000
_UNSAID, _SAID_LATER = "a photo of", "a picture of"
TAKES_NOUN = frozenset(
    "of with for about from on in by showing featuring depicting containing portraying".split()
)
"""Words after which an opening, "an ad for", needs no "of" before its noun."""

_ALWAYS_THERE = ("class_noun", "kind", "that_is")


class CaptionTemplateError(RegforgeError):
    """A caption template that cannot be used; the message names the file and the line."""

    exit_code = EXIT_USAGE


# ------------------------------------------------------------------------------------------ words


def word_pattern(words: str) -> re.Pattern[str]:
    """Matches the words as words, in upper or lower case: "sks" in "a SKS dog", not in "masks"."""
    return re.compile(rf"(?<!\w){_spaced(words)}(?!\w)", re.IGNORECASE)


def noun_pattern(class_noun: str) -> re.Pattern[str]:
    """Matches a class noun, its telling words ("teapot" of "ceramic teapot"), and their plurals."""
    head, of, rest = re.split(rf"(\s(?:{_PREPOSITIONS})\s|$)", class_noun, maxsplit=1)
    *before, last = head.split()
    start = _spaced(" ".join(before)) + r"\s+" if before else ""
    whole = f"{start}{_or_plural(last)}{_spaced(of + rest) if rest else ''}"
    lasts = dict.fromkeys([last, class_noun.rsplit(maxsplit=1)[-1]])
    turned = [rf"{re.escape(last)}\s+{re.escape(before[0])}"] if len(before) == 1 else []
    options = [whole, *turned, *map(_or_plural, lasts)]  # a toy robot is a robot toy
    return re.compile(rf"(?<!\w)(?:{'|'.join(options)})(?!\w)", re.IGNORECASE)


def plurals(noun: str) -> list[str]:
    """What the plural of a noun of one word may be; what is no word does no harm."""
    forms = [f"{noun}s", f"{noun}es"]
    for ending, plural in _ENDINGS:
        if noun.lower().endswith(ending):
            forms.append(noun[: -len(ending)] + plural)
    return forms


def _or_plural(noun: str) -> str:
    return f"(?:{'|'.join(map(re.escape, (noun, *plurals(noun))))})"


_PREPOSITIONS = "of|with|without|in|on|for|from"
_ENDINGS = (
    *(("y", "ies"), ("f", "ves"), ("fe", "ves"), ("man", "men"), ("child", "children")),
    *(("person", "people"), ("mouse", "mice"), ("goose", "geese")),
)


def _spaced(words: str) -> str:
    """A regular expression for words with any white space between, and before if they have any."""
    before = r"\s+" if words[:1].isspace() else ""
    return before + r"\s+".join(re.escape(word) for word in words.split())


def tidy(text: str) -> str:
    """A caption without the traces of slots that were empty: doubled space, stray commas."""
    text = " ".join(text.split())
    if "," in text:
        text = re.sub(r"\s+,", ",", text)
        text = re.sub(r",(?:,)+", ",", text).strip(" ,")
    return text


def opening(style: str) -> str:
    """How a caption of this style begins: "a watercolor painting of", "a photo of" if unsaid.

    A style opens the caption if it starts with an article or ends in "of"; others, such as "in the
    style of Monet" or "cinematic", close it, and the caption opens with "a picture of".
    """
    if not _opens(style):
        return _SAID_LATER if style else _UNSAID
    return style if style.rsplit(maxsplit=1)[-1] in TAKES_NOUN else f"{style} of"


def closing(style: str) -> str:
    """The style if it is one that closes the caption, else nothing."""
    return "" if _opens(style) or not style else style


def _opens(style: str) -> bool:
    first = style.partition(" ")[0].lower()
    return first in ("a", "an", "the") or style.endswith(" of")


def is_photograph(style: str) -> bool:
    """Whether a style is a kind of photograph, as "a close-up photo of" is."""
    return _PHOTOGRAPH.search(style) is not None


_PHOTOGRAPH = re.compile(
    r"\b(?:photo(?!-)(?:graph(?:ic)?)?s?|snapshot|selfie|polaroid|shot|"
    r"(?<!claymation )(?<!motion )(?<!anime )(?<!cartoon )still(?! life))\b",
    re.IGNORECASE,
)


def words(parts: Collection[str]) -> str:
    """Those that are not empty, with spaces between."""
    return " ".join(part for part in parts if part)


def listed(parts: Collection[str]) -> str:
    """Those that are not empty, as a list in a sentence: "small, squat and red"."""
    *most, last = [part for part in parts if part] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def that_is(class_noun: str) -> str:
    """What joins a class noun to what is said after it: "that is", "that are" or "who is"."""
    banks = phrase_banks.load()
    person = banks.super_category(class_noun, "toy") == "person"
    verb = "are" if banks.number(class_noun) == "plural" else "is"
    return f"{'who' if person else 'that'} {verb}"


def article_for(class_noun: str) -> Callable[[str], str]:
    """A function that puts "a" or "an" before a phrase about the class noun, if it takes one.

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
    """The caption of a photo of the subject of which nothing else is known: "a photo of a sks dog".

    With an article, as DreamBooth's "a [identifier] [class noun]" and DreamBench's prompts have it,
    and as the naive caption "a photo of a dog" differs from it in the identifier alone.
    """
    named = identifier or class_noun
    if identifier and not word_pattern(class_noun).search(identifier):
        named = f"{identifier} {class_noun}"
    if phrase_banks.load().takes_article(class_noun):
        named = f"{phrase_banks.indefinite_article(named)} {named}"
    return f"a photo of {named}"


# --------------------------------------------------------------------------------------- templates


class CaptionTemplate:
    """A checked template of one class noun.

    Args:
        file: The template.
        name: What errors and the dataset call it, such as `caption/object.j2`.
        class_noun: What the captions are about.
        kind: `object` or `living`.
        slots: The recipe's slots; the template has to use each of them.
        identifier: Must not come out of the template.

    Attributes:
        name: See above.
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
        self._environment = _environment(file, self._noun)
        self._templates: list[Template] = []
        self._check_subject(slots, identifier)
        self._names = self._forms()
        self.forms = len(self._names)
        for form, form_name in enumerate(self._names):
            self._check_names(form_name, slots)
            self._templates.append(self._compile(form_name))
            self._check_output(form, identifier)
        self.attributes = self._slots_before_noun()

    def form(self, phrases: Mapping[str, str | None]) -> int:
        """The form that captions of these phrases take: any of them, the same each time.

        And the same for "sky-blue" and "sky blue", or they would make two captions.
        """
        if self.forms == 1:
            return 0
        said = json.dumps(
            sorted((slot, words_of(phrase)) for slot, phrase in phrases.items() if phrase)
        )
        return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8]) % self.forms

    def render(self, phrases: Mapping[str, str | None], form: int = 0) -> str:
        """The caption of a row.

        Args:
            phrases: The phrase of each slot; slots that are missing, empty or None are left out.
            form: Which form, from 0.

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

    def _forms(self) -> list[str]:
        """What the environment calls the forms."""
        try:
            count = len(forms_of(read_text(self._file)))
        except (OSError, UnicodeDecodeError) as error:
            raise self._failure(error) from error
        return [f"{self._file.name}#{number}" for number in range(count)]

    def _compile(self, name: str) -> Template:
        try:
            return self._environment.get_template(name)
        except (TemplateError, OSError, UnicodeDecodeError) as error:
            raise self._failure(error) from error

    # --------------------------------------------------------------------------------- the checks

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
            tree, names, shown = self._parse(source_name)
            for name in sorted(names - self._blank.keys()):
                known = ", ".join((*_ALWAYS_THERE, *(s for s in self._blank if s != "class_noun")))
                raise CaptionTemplateError(
                    f"{shown}:{_line_of(tree, name)}: there is no {name!r} here."
                    f"{suggestion(name, self._blank)}",
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
        self._check_used(used, slots)

    def _parse(self, source_name: str) -> tuple[jinja.Template, set[str], str]:
        """The syntax tree of a template, the names that it uses, and what errors call it."""
        shown = self.name if source_name in self._names else source_name
        try:
            return *self._environment.parsed(source_name), shown
        except (TemplateError, OSError, UnicodeDecodeError) as error:
            raise self._failure(error, shown) from error

    def _check_used(self, used: Collection[str], slots: Sequence[str]) -> None:
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
        if len(full) > _MOST_CHARACTERS:
            raise CaptionTemplateError(f"{self.name}:1: it writes {len(full)} characters.")

    def _slots_before_noun(self) -> tuple[str, ...]:
        """Found by looking at where the phrases end up, so that it holds for any template."""
        marks = {f"{slot}slot": slot for slot in self._blank if slot not in _ALWAYS_THERE}
        text = self.render({slot: mark for mark, slot in marks.items()})
        before = word_pattern(self._noun).split(text)[0].split()
        found: list[str] = []
        while before and before[-1] in marks:
            found.insert(0, marks[before.pop()])
        return tuple(found)

    def _failure(self, error: Exception, shown: str | None = None) -> CaptionTemplateError:
        """A template's error, with the line if there is one."""
        line = getattr(error, "lineno", None)
        if line is None:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(self._file)]
            line = lines[-1] if lines else 1
        message = str(getattr(error, "message", None) or error) or type(error).__name__
        if isinstance(error, OSError) and not isinstance(error, TemplateError):
            message = f"it cannot be read: {error.strerror or error}"
        return CaptionTemplateError(f"{shown or self.name}:{line}: {message.rstrip('.')}.")


def _environment(file: Path, class_noun: str) -> BoundedEnvironment:
    return BoundedEnvironment(
        [file.parent, resources.templates()],
        {
            "a": article_for(class_noun),
            "words": words,
            "listed": listed,
            "opening": opening,
            "closing": closing,
        },
        most_characters=5 * _MOST_CHARACTERS,
        most_operations=_MOST_OPERATIONS,
        forms=True,
    )


def _line_of(tree: jinja.Template, name: str) -> int:
    lines = [node.lineno for node in tree.find_all(jinja.Name) if node.name == name]
    return min(lines, default=1)
