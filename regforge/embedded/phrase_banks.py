"""Curated phrases: what a caption can say about a class noun when nobody asks a language model.

Knows which phrases suit which class noun, and which phrases go together. It does not know how
captions are sampled or templated, nor anything of language models; `bank_files` knows the YAML.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from regforge.embedded.bank_files import (
    CategoryFile,
    Kind,
    PhraseBankError,
    SharedFile,
    Source,
    entries,
    plain,
    read_folder,
    suggestion,
)
from regforge.errors import RegforgeError

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
]

OWN_SLOTS = ("shape", "color", "texture", "motion")
"""Slots that every super-category's own file fills; `motion` is for living things only."""

SHARED_SLOTS = {"background": "places.yaml", "lighting": "lighting.yaml", "style": "styles.yaml"}
"""Slots that all super-categories draw from one file, and that file."""

SLOTS = (*OWN_SLOTS, *SHARED_SLOTS)


class UnknownClassNoun(PhraseBankError):
    """A class noun that belongs to no super-category."""


# --------------------------------------------------------------------------------- what one gets


@dataclass(frozen=True, slots=True)
class Phrase:
    """One phrase, and what it goes with.

    Attributes:
        text: The words, ready to stand in a caption.
        slot: The slot it fills.
        tags: What it is; for a place these are what `fits` and `avoids` of others look at.
        fits: If not empty, it needs a place with at least one of these tags.
        avoids: It needs a place with none of these tags.
        only_for: If not empty, only these super-categories or groups use it.
        not_for: These super-categories or groups never use it.
    """

    text: str
    slot: str
    tags: frozenset[str] = frozenset()
    fits: frozenset[str] = frozenset()
    avoids: frozenset[str] = frozenset()
    only_for: frozenset[str] = frozenset()
    not_for: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.text


def compatible(first: Phrase, second: Phrase, *more: Phrase) -> bool:
    """Whether phrases can stand in one caption.

    Only a place restricts the others: no swimming in a kitchen, no starry sky there either.
    """
    chosen = (first, second, *more)
    places = [phrase for phrase in chosen if phrase.slot == "background"]
    return all(_suits(phrase.fits, phrase.avoids, place) for phrase in chosen for place in places)


def _suits(fits: frozenset[str], avoids: frozenset[str], place: Phrase) -> bool:
    return (not fits or not fits.isdisjoint(place.tags)) and avoids.isdisjoint(place.tags)


@dataclass(frozen=True, slots=True)
class _Group:
    """Class nouns that behave alike, such as the songbirds."""

    names: frozenset[str]
    """What `only_for` and `not_for` call it: itself, what it is also, and its super-category."""
    nouns: tuple[str, ...]
    fits: frozenset[str]
    avoids: frozenset[str]

    def uses(self, phrase: Phrase) -> bool:
        if not phrase.not_for.isdisjoint(self.names):
            return False
        if phrase.only_for:
            # A place reserved for this group needs no matching tag.
            return not phrase.only_for.isdisjoint(self.names)
        if phrase.slot != "background":
            return True
        # Unlike a phrase, a group that fits no tag fits no place but the reserved ones.
        return not self.fits.isdisjoint(phrase.tags) and self.avoids.isdisjoint(phrase.tags)


@dataclass(frozen=True, slots=True)
class _Category:
    kind: Kind
    default: _Group
    groups: Mapping[str, _Group]
    without_article: frozenset[str]
    own: tuple[Phrase, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """Where a class noun belongs, under which name it was found, and whether as a plural."""

    super_category: str
    group: _Group
    noun: str
    plural: bool = False
    measured: bool = False
    """Found behind a measure, as in "pair of glasses"."""


class PhraseBanks:
    """A folder of banks, read and checked. `load` makes one.

    Attributes:
        super_categories: Their names, sorted.
    """

    def __init__(
        self,
        categories: Mapping[str, _Category],
        shared: tuple[Phrase, ...],
        markers: Mapping[str, tuple[str, str]],
    ) -> None:
        self._categories = categories
        self._shared = shared
        self._markers = markers
        self._nouns = {
            plain(noun): (name, group)
            for name, category in categories.items()
            for group in category.groups.values()
            for noun in group.nouns
        }
        self.super_categories: tuple[str, ...] = tuple(sorted(categories))

    def super_category(self, class_noun: str, default: str | None = None) -> str:
        """The super-category of a class noun: as listed, or that of its head noun.

        "red ceramic teapots" is found as "teapot", "toy car" as a toy, "statue of a horse" as a
        statue.

        Args:
            class_noun: What the subject is.
            default: What to return for a noun that nobody listed.

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
        hint = f"Did you mean {_or(near)}? " if near else ""
        raise UnknownClassNoun(
            f"No phrase bank knows the class noun {class_noun!r}.",
            hint=f"{hint}Otherwise name its super-category: {_or(self.super_categories)}.",
        )

    def phrases(
        self, slot: str, super_category: str, class_noun: str | None = None
    ) -> tuple[Phrase, ...]:
        """The phrases of a slot that a super-category may use.

        Args:
            slot: One of `SLOTS`.
            super_category: Whose phrases.
            class_noun: Narrows to what suits this noun (no bus stops for a trout). Without one,
                or for a noun the super-category does not list, the answer is that for its
                ordinary member, the `default_group`. A place with the same thing in it is left
                out.

        Raises:
            PhraseBankError: There is no such slot or super-category.
        """
        if slot not in SLOTS:
            raise PhraseBankError(
                f"No phrase bank has a slot {slot!r}.", hint=f"Slots: {_or(SLOTS)}."
            )
        category = self._category(super_category)
        found = self._find(class_noun) if class_noun else None
        if found is None or found.super_category != super_category:
            return self._usable(slot, category, category.default)
        usable = self._usable(slot, category, found.group)
        if slot != "background":
            return usable
        return tuple(phrase for phrase in usable if not _mentions(phrase.text, found.noun))

    def count(self, slot: str, super_category: str) -> int:
        """How many phrases of a slot at least one group of the super-category may use."""
        category = self._category(super_category)
        groups = category.groups.values()
        return len({each for group in groups for each in self._usable(slot, category, group)})

    def _usable(self, slot: str, category: _Category, group: _Group) -> tuple[Phrase, ...]:
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

    def takes_article(self, class_noun: str) -> bool:
        """Whether the noun takes "a": not so "glasses", "bread", or a plural such as "boots"."""
        found = self._find(class_noun)
        if found is None or found.measured:
            return True
        without = self._categories[found.super_category].without_article
        return not found.plural and plain(found.noun) not in without

    def _category(self, name: str) -> _Category:
        if name not in self._categories:
            raise PhraseBankError(
                f"There is no super-category {name!r}.{suggestion(name, self._categories)}",
                hint=f"Super-categories: {', '.join(self.super_categories)}.",
            )
        return self._categories[name]

    def _find(self, class_noun: str) -> _Found | None:
        noun = plain(class_noun)
        head = re.split(r" (?:of|with|without|in|on|for|from|made) ", noun)[0]
        # The whole first: "cup of tea" is a drink. Then the head, so that a "statue of a horse"
        # is a statue. Then the whole again, because a "pair of glasses" has no telling head.
        found = self._exact(noun) or self._by_ending(head)
        if found is None and (found := self._by_ending(noun)):
            found = replace(found, measured=True)
        return found

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
    return _build(read_folder(files("regforge.embedded").joinpath("banks")))


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
    return _build({**read_folder(files("regforge.embedded").joinpath("banks")), **own})


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

_IRREGULAR = {
    "people": "person",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "oxen": "ox",
}
_PLURALS = (("ves", "f"), ("ves", "fe"), ("ies", "y"), ("men", "man"), ("es", ""), ("s", ""))


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


def indefinite_article(text: str) -> str:
    """The word "a" or "an", as the first word of the text sounds."""
    word = text.lower()
    if re.match(r"hour|honest|heir|[fhlmnrsx]-", word):
        return "an"
    if re.match(r"uni(?!n|m)|use|one\b|e[uw]|ukulele|u-", word):
        return "a"
    return "an" if word[:1] in set("aeiou") else "a"


def _or(options: Iterable[str]) -> str:
    *most, last = options
    return f"{', '.join(most)} or {last}" if most else last


# --------------------------------------------------------------------------- building from files


def _build(sources: Mapping[str, Source]) -> PhraseBanks:
    shared = {slot: sources[name] for slot, name in SHARED_SLOTS.items()}
    own = {
        name.removesuffix(".yaml"): source
        for name, source in sources.items()
        if name not in SHARED_SLOTS.values()
    }
    shared_files = {slot: source.parse(SharedFile) for slot, source in shared.items()}
    own_files = {name: source.parse(CategoryFile) for name, source in own.items()}
    known = _known_names(shared_files["background"], own_files)
    _refuse_repeated_nouns(own, own_files)
    for name, file in own_files.items():
        _check_category(own[name], file, known["fits"])
    return PhraseBanks(
        {name: _category(own[name], name, file, known) for name, file in own_files.items()},
        tuple(
            Phrase(text, slot, **rules)
            for slot, file in shared_files.items()
            for text, rules in entries(
                shared[slot], "blocks", file.blocks, {**known, "tags": set(file.tags)}
            )
        ),
        {
            word: (name, group)
            for name, file in own_files.items()
            for word, group in file.markers.items()
        },
    )


def _known_names(places: SharedFile, categories: Mapping[str, CategoryFile]) -> dict[str, set[str]]:
    """The valid names for each rule of a phrase; only shared files have tags of their own."""
    names = set(categories)
    for file in categories.values():
        names.update(file.groups, *(group.also for group in file.groups.values()))
    tags = set(places.tags)
    return {"tags": set(), "fits": tags, "avoids": tags, "only_for": names, "not_for": names}


def _refuse_repeated_nouns(
    sources: Mapping[str, Source], parsed: Mapping[str, CategoryFile]
) -> None:
    owner: dict[str, str] = {}
    for name, file in parsed.items():
        for group, entry in file.groups.items():
            for number, noun in enumerate(entry.nouns):
                if plain(noun) in owner:
                    message = f"{noun!r} is already in {owner[plain(noun)]}"
                    raise sources[name].error(("groups", group, "nouns", number), message)
                owner[plain(noun)] = f"{name}.yaml, group {group}"


def _check_category(source: Source, file: CategoryFile, place_tags: set[str]) -> None:
    source.check_known([file.default_group], file.groups, ("default_group",), "group")
    for word, group in file.markers.items():
        source.check_known([group], file.groups, ("markers", word), "group")
    nouns = {noun for entry in file.groups.values() for noun in entry.nouns}
    source.check_known(file.without_article, nouns, ("without_article",), "class noun")
    source.check_known(file.fits, place_tags, ("fits",), "place tag")
    source.check_known(file.avoids, place_tags, ("avoids",), "place tag")
    for group, entry in file.groups.items():
        here = ("groups", group)
        source.check_known(entry.fits or (), place_tags, (*here, "fits"), "place tag")
        source.check_known(entry.avoids or (), place_tags, (*here, "avoids"), "place tag")
    if (file.kind == "living") != bool(file.motion):
        raise source.error(("motion",), "living things need motions, and objects must have none")


def _category(
    source: Source, name: str, file: CategoryFile, known: Mapping[str, set[str]]
) -> _Category:
    groups = {
        group: _Group(
            names=frozenset({name, group, *entry.also}),
            nouns=tuple(entry.nouns),
            fits=frozenset(file.fits if entry.fits is None else entry.fits),
            avoids=frozenset(file.avoids if entry.avoids is None else entry.avoids),
        )
        for group, entry in file.groups.items()
    }
    own = (
        Phrase(text, slot, **rules)
        for slot in OWN_SLOTS
        for text, rules in entries(source, slot, getattr(file, slot), known)
    )
    without = frozenset(plain(noun) for noun in file.without_article)
    return _Category(file.kind, groups[file.default_group], groups, without, tuple(own))


# ------------------------------------------------------------------------------- the command line


def counts_table(banks: PhraseBanks) -> str:
    """A Markdown table: how many class nouns and phrases each super-category has.

    A phrase counts if at least one group of the super-category may use it.
    """
    rows = [["super-category", "kind", "class nouns", *SLOTS]]
    for name in banks.super_categories:
        counts = [len(banks.class_nouns(name)), *(banks.count(slot, name) for slot in SLOTS)]
        rows.append([name, banks.kind(name), *(str(count or "-") for count in counts)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    ruler = "|" + " --- |" * 2 + " ---: |" * (len(SLOTS) + 1)
    return "\n".join([lines[0], ruler, *lines[1:]])


def example_captions(banks: PhraseBanks, class_noun: str, count: int, seed: int) -> list[str]:
    """Captions to proofread the banks with: a place at random, the rest at random to suit it.

    Not the sampler of datasets, which covers the phrases evenly.
    """
    name = banks.super_category(class_noun)
    pools = {slot: banks.phrases(slot, name, class_noun) for slot in banks.slots(name)}
    rng = random.Random(seed)
    article = banks.takes_article(class_noun)
    return [_caption(pools, class_noun, article, rng) for _ in range(count)]


def _caption(
    pools: Mapping[str, Sequence[Phrase]], class_noun: str, article: bool, rng: random.Random
) -> str:
    place = rng.choice(pools["background"])
    chosen = {
        slot: rng.choice([phrase for phrase in pool if compatible(phrase, place)]).text
        for slot, pool in pools.items()
        if slot != "background"
    }
    looks = f"{chosen['shape']} {chosen['color']} {chosen['texture']} {class_noun}"
    if article:
        looks = f"{indefinite_article(looks)} {looks}"
    parts = [chosen["style"], "of", looks, chosen.get("motion", ""), place.text]
    return f"{' '.join(filter(None, parts))}, {chosen['lighting']}"


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
