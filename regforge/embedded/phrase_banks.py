"""Curated phrases: what a caption can say about a class noun when no language model is asked.

    >>> place = phrases("background", super_category("teapot"), "teapot")[0]
    >>> lights = [each for each in phrases("lighting", "rigid_object") if compatible(each, place)]

`python -m regforge.embedded.phrase_banks` prints how many phrases there are, and with
`--captions 20` captions to proofread. docs/phrase-banks.md explains the files.
"""

import argparse
import difflib
import functools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from regforge.embedded.bank_files import (
    SHARED_SLOTS,
    SLOTS,
    Category,
    CategoryFile,
    Kind,
    NounGroup,
    Phrase,
    PhraseBankError,
    SharedFile,
    Source,
    category_of,
    check_nouns,
    compatible,
    read_folder,
)
from regforge.errors import RegforgeError
from regforge.words import (
    MASS_NOUNS,
    Number,
    did_you_mean,
    indefinite_article,
    listed,
    number_of,
    plain,
    words_of,
)

__all__ = [
    "SLOTS",
    "Kind",
    "Phrase",
    "PhraseBankError",
    "PhraseBanks",
    "UnknownClassNoun",
    "compatible",
    "indefinite_article",
    "kind",
    "load",
    "phrases",
    "super_category",
    "with_article",
    "with_noun",
]


class UnknownClassNoun(PhraseBankError):
    """A class noun that belongs to no super-category."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Where a class noun belongs, under which name it was found, and whether as a plural."""

    super_category: str
    group: NounGroup
    noun: str
    plural: bool = False
    measured: bool = False
    """Found behind a measure, as in "pair of glasses"."""


class PhraseBanks:
    """A folder of banks, read and checked. `load` makes one.

    Args:
        sources: As `read_folder` gives them.

    Attributes:
        super_categories: Their names, sorted.

    Raises:
        PhraseBankError: A file has something wrong; the message names its line and key.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        shared = {slot: sources[name].parse(SharedFile) for slot, name in SHARED_SLOTS.items()}
        own = {
            name: source.parse(CategoryFile)
            for name, source in sources.items()
            if name not in SHARED_SLOTS.values()
        }
        names = set(own)
        for file in own.values():
            names.update(file.groups, *(group.also for group in file.groups.values()))
        tags = set(shared["background"].tags)
        # The valid names for each rule of a phrase; only shared files have tags of their own.
        known = {"tags": set(), "fits": tags, "avoids": tags, "only_for": names, "not_for": names}
        check_nouns(sources, own)
        for name, file in own.items():
            sources[name].check_category(file, tags)
        self._categories = {
            name: category_of(sources[name], name, file, known) for name, file in own.items()
        }
        self._shared = tuple(
            Phrase(text, slot, **rules)
            for slot, file in shared.items()
            for text, rules in sources[SHARED_SLOTS[slot]].entries(
                "blocks", file.blocks, {**known, "tags": set(file.tags)}
            )
        )
        # Words that turn any noun into a member of a super-category's group, as "toy" does.
        self._markers = {
            word: (name, group)
            for name, file in own.items()
            for word, group in file.markers.items()
        }
        self._nouns = {
            plain(noun): (name, group)
            for name, category in self._categories.items()
            for group in category.groups.values()
            for noun in group.nouns
        }
        self.super_categories: tuple[str, ...] = tuple(sorted(self._categories))

    def super_category(self, class_noun: str, default: str | None = None) -> str:
        """The super-category of a class noun: as listed, or that of its head noun.

        "red ceramic teapots" is found as "teapot", "toy car" as a toy, "statue of a horse" as a
        statue.

        Raises:
            UnknownClassNoun: Nobody listed it and there is no default.
        """
        found = self._find(class_noun)
        if found:
            return found.super_category
        if default is not None:
            self._category(default)
            return default
        near = difflib.get_close_matches(plain(class_noun), self._nouns, n=3)
        hint = f"Did you mean {listed(near, conjunction='or')}? " if near else ""
        names = listed(self.super_categories, conjunction="or")
        raise UnknownClassNoun(
            f"No phrase bank knows the class noun {class_noun!r}.",
            hint=f"{hint}Otherwise name its super-category: {names}.",
        )

    def phrases(
        self, slot: str, super_category: str, class_noun: str | None = None
    ) -> tuple[Phrase, ...]:
        """The phrases of a slot that a super-category may use.

        Args:
            slot: One of `SLOTS`.
            super_category: Whose phrases.
            class_noun: Narrows to what suits this noun (no bus stops for a trout). Without one,
                or for a noun the super-category does not list, they are those of its ordinary
                member, the `default_group`. A place with the same thing in it is left out.

        Raises:
            PhraseBankError: There is no such slot or super-category.
        """
        if slot not in SLOTS:
            raise PhraseBankError(
                f"No phrase bank has a slot {slot!r}.",
                hint=f"Slots: {listed(SLOTS, conjunction='or')}.",
            )
        category = self._category(super_category)
        found = self._find(class_noun) if class_noun else None
        if found is None or found.super_category != super_category:
            return self._usable(slot, category, category.default)
        usable = self._usable(slot, category, found.group)
        if slot == "shape" and self.number(class_noun or "") == "mass":  # no "small water"
            return tuple(phrase for phrase in usable if phrase.text not in _SIZES)
        if slot != "background":
            return usable
        return tuple(phrase for phrase in usable if not _mentions(phrase.text, found.noun))

    def count(self, slot: str, super_category: str) -> int:
        """How many phrases of a slot at least one group of the super-category may use."""
        category = self._category(super_category)
        groups = category.groups.values()
        return len({each for group in groups for each in self._usable(slot, category, group)})

    def _usable(self, slot: str, category: Category, group: NounGroup) -> tuple[Phrase, ...]:
        return tuple(
            phrase
            for phrase in (*category.own, *self._shared)
            if phrase.slot == slot and group.uses(phrase)
        )

    def slots(self, super_category: str) -> tuple[str, ...]:
        """The slots a super-category fills, in the order in which a caption uses them."""
        living = self.kind(super_category) == "living"
        return tuple(slot for slot in SLOTS if living or slot != "motion")

    def kind(self, super_category: str) -> Kind:
        """Whether a super-category is of living things or of objects."""
        return self._category(super_category).kind

    def class_nouns(self, super_category: str) -> tuple[str, ...]:
        """The class nouns that a super-category lists."""
        groups = self._category(super_category).groups.values()
        return tuple(noun for group in groups for noun in group.nouns)

    def number(self, class_noun: str) -> Number:
        """How a noun counts: "glasses" and "boots" are plurals, "bread" and "sea water" a mass."""
        noun = _head(plain(class_noun))
        found = self._find(class_noun)
        if found is None:
            return number_of(noun)
        if found.measured:
            return "singular"
        if found.plural:
            return "plural"
        if plain(found.noun) in self._categories[found.super_category].without_article:
            return "plural" if number_of(found.noun) == "plural" else "mass"
        return "singular"

    def takes_article(self, class_noun: str) -> bool:
        """Whether the noun takes "a": not so "glasses", "bread", or a plural such as "boots"."""
        return self.number(class_noun) == "singular"

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """Every word of class nouns and phrases, in lower case: the English that the banks know."""
        texts = [phrase.text for phrase in self._shared]
        for category in self._categories.values():
            texts += [phrase.text for phrase in category.own]
            texts += [noun for group in category.groups.values() for noun in group.nouns]
        return MASS_NOUNS.union(
            *map(words_of, texts), *(marker.split() for marker in self._markers)
        )

    @functools.cached_property
    def proper_nouns(self) -> frozenset[str]:
        """The class nouns that are written with capitals, in lower case: "german shepherd"."""
        groups = (g for category in self._categories.values() for g in category.groups.values())
        return frozenset(
            noun.lower() for group in groups for noun in group.nouns if noun != noun.lower()
        )

    def _category(self, name: str) -> Category:
        if name not in self._categories:
            raise PhraseBankError(
                f"There is no super-category {name!r}.{did_you_mean(name, self._categories)}",
                hint=f"Super-categories: {', '.join(self.super_categories)}.",
            )
        return self._categories[name]

    def _find(self, class_noun: str) -> _Found | None:
        noun = plain(class_noun)
        head = _head(noun)
        # The whole first: "cup of tea" is a drink. Then the head, so that a "statue of a horse"
        # is a statue. Then the whole again, because a "pair of glasses" has no telling head.
        found = self._exact(noun) or self._contents(noun) or self._by_ending(head)
        if found is None and (found := self._by_ending(noun)):
            found = replace(found, measured=True)
        return found

    def _contents(self, noun: str) -> _Found | None:
        """Of food in a vessel the food, which says more of what is seen: "glass of lemonade"."""
        measure, of, contents = noun.partition(" of ")
        found = self._by_ending(contents) if of and measure.split()[-1] in _VESSELS else None
        edible = found is not None and found.super_category == "food"
        return replace(found, measured=True) if found and edible else None

    def _by_ending(self, noun: str) -> _Found | None:
        words = noun.split()
        for start in range(len(words)):
            found = self._exact(" ".join(words[start:]))
            if found:
                return found
            # Not for the last word: in "a toy" there is nothing that it turns into one.
            marker = self._markers.get(words[start])
            if marker and start + 1 < len(words):
                super_category, group = marker
                members = self._categories[super_category].groups[group]
                return _Found(super_category, members, words[-1])
        return None

    def _exact(self, noun: str) -> _Found | None:
        for form in (noun, *_singulars(noun)):
            if form in self._nouns:
                super_category, group = self._nouns[form]
                return _Found(super_category, group, form, plural=form != noun)
        return None


@functools.cache
def _shipped() -> PhraseBanks:
    return PhraseBanks(read_folder(files("regforge.embedded").joinpath("banks")))


def load(path: str | Path | None = None) -> PhraseBanks:
    """Read banks: the shipped ones, or a folder of one's own laid over them.

    Args:
        path: A folder of YAML files like the shipped ones. A file replaces the shipped file of
            the same name, and a file with a new name is a new super-category.

    Raises:
        PhraseBankError: The folder or one of its files cannot be used; the message names the
            file, the line and the key.
    """
    if path is None:
        return _shipped()
    folder = Path(path)
    own = read_folder(folder) if folder.is_dir() else {}
    if not own:
        raise PhraseBankError(f"{folder} is not a folder with phrase banks (*.yaml).")
    shipped = read_folder(files("regforge.embedded").joinpath("banks"))
    return PhraseBanks({**shipped, **own})


def super_category(class_noun: str, default: str | None = None) -> str:
    """`PhraseBanks.super_category` of the shipped banks."""
    return load().super_category(class_noun, default)


def phrases(slot: str, super_category: str, class_noun: str | None = None) -> tuple[Phrase, ...]:
    """`PhraseBanks.phrases` of the shipped banks."""
    return load().phrases(slot, super_category, class_noun)


def kind(super_category: str) -> Kind:
    """`PhraseBanks.kind` of the shipped banks."""
    return load().kind(super_category)


# ------------------------------------------------------------------------------------------ words

_VESSELS = frozenset(
    "glass cup mug bottle bowl plate jug pitcher jar can carton slice piece scoop serving".split()
)
_SIZES = frozenset(
    "small large tiny big tall short huge mini miniature compact oversized medium-sized hefty wide "
    "narrow long slender slim low thick round single-serving modest squat bite-sized irregular "
    "family-sized lopsided neat generous elegant".split()
)
_IRREGULAR = {
    "people": "person",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "oxen": "ox",
}
_PLURALS = (("ves", "f"), ("ves", "fe"), ("ies", "y"), ("men", "man"), ("es", ""), ("s", ""))


def _head(noun: str) -> str:
    """What a noun is before it says of what or with what: "statue" of "statue of a horse"."""
    return re.split(r" (?:of|with|without|in|on|for|from|made) ", noun)[0]


def _singulars(noun: str) -> Iterator[str]:
    """What the noun may be the plural of; most of it nonsense, which no bank lists."""
    before, space, last = noun.rpartition(" ")
    forms = [last.removesuffix(old) + new for old, new in _PLURALS if last.endswith(old)]
    yield from (before + space + form for form in (*forms, _IRREGULAR.get(last, "")) if form)


def _mentions(text: str, noun: str) -> bool:
    """Whether a place has the subject in it a second time: a bowl "beside a bowl of lemons".

    As the first half of a compound it is another thing: a car may stand "in a car showroom".
    """
    head = re.escape(noun.rsplit(maxsplit=1)[-1])
    return re.search(rf"\b{head}s?(?: (?:of|with|on|in|by|at)\b|$)", text) is not None


def with_article(noun: str) -> str:
    """The noun phrase with "a" or "an" before it, if it takes one: "an owl", "water", "glasses"."""
    if not noun or not load().takes_article(noun):
        return noun
    return f"{indefinite_article(noun)} {noun}"


def with_noun(text: str, noun: str) -> str:
    """The text with a noun phrase in the place of each `{}`.

    "a {} at night" is "an owl at night", or "water at night", which takes no article.
    """
    named = with_article(noun)
    as_written = {"a {}": named, "A {}": named[:1].upper() + named[1:], "{}": noun}
    return re.sub(r"(\b[Aa] )?\{\}", lambda found: as_written[found[0]], text)


# ------------------------------------------------------------------------------- the command line


def counts_table(banks: PhraseBanks) -> str:
    """A Markdown table: how many class nouns and phrases each super-category has."""
    rows = [["super-category", "kind", "class nouns", *SLOTS]]
    for name in banks.super_categories:
        counts = [len(banks.class_nouns(name)), *(banks.count(slot, name) for slot in SLOTS)]
        rows.append([name, banks.kind(name), *(str(count or "-") for count in counts)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    ruler = "|" + " --- |" * 2 + " ---: |" * (len(SLOTS) + 1)
    return "\n".join([lines[0], ruler, *lines[1:]])


def example_captions(banks: PhraseBanks, class_noun: str, count: int, seed: int) -> list[str]:
    """Captions to proofread the banks with: a place at random, the rest at random to suit it."""
    name = banks.super_category(class_noun)
    pools = {slot: banks.phrases(slot, name, class_noun) for slot in banks.slots(name)}
    rng, captions = random.Random(seed), []
    for _ in range(count):
        place = rng.choice(pools["background"])
        chosen = {
            slot: rng.choice([phrase for phrase in pool if compatible(phrase, place)]).text
            for slot, pool in pools.items()
            if slot != "background"
        }
        looks = f"{chosen['shape']} {chosen['color']} {chosen['texture']} {class_noun}"
        if banks.takes_article(class_noun):
            looks = f"{indefinite_article(looks)} {looks}"
        parts = [chosen["style"], "of", looks, chosen.get("motion", ""), place.text]
        captions.append(f"{' '.join(filter(None, parts))}, {chosen['lighting']}")
    return captions


def main(arguments: Sequence[str] | None = None) -> None:
    """Check a folder of banks and print its counts, or captions to proofread."""
    parser = argparse.ArgumentParser(
        prog="python -m regforge.embedded.phrase_banks",
        description="Checks the phrase banks and prints how many phrases there are.",
    )
    parser.add_argument("--banks", metavar="DIR", help="a folder of your own, laid over ours")
    parser.add_argument("--captions", type=int, metavar="N", help="print N captions to proofread")
    parser.add_argument("--class-noun", help="of this class noun (default: random ones)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        banks = load(options.banks)
        if options.captions is None:
            print(counts_table(banks))
            return
        rng = random.Random(options.seed)
        for number in range(options.captions):
            names = banks.super_categories
            noun = options.class_noun or rng.choice(banks.class_nouns(names[number % len(names)]))
            print(*example_captions(banks, noun, 1, rng.randrange(2**32)))
    except RegforgeError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
