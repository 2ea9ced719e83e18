"""Builds phrase banks from their files, and refuses files that contradict one another."""

from collections.abc import Mapping
from dataclasses import dataclass

from regforge.embedded.bank_files import CategoryFile, SharedFile, Source, entries, plain
from regforge.embedded.bank_phrases import OWN_SLOTS, SHARED_SLOTS, Category, NounGroup, Phrase


@dataclass(frozen=True, slots=True)
class Contents:
    """What a folder of banks says, checked."""

    categories: Mapping[str, Category]
    shared: tuple[Phrase, ...]
    """The phrases that all super-categories draw from."""
    markers: Mapping[str, tuple[str, str]]
    """Words that turn any noun into a member of a super-category's group, as "toy" does."""


def contents_of(sources: Mapping[str, Source]) -> Contents:
    """Build the phrases and groups that the files of a folder declare.

    Args:
        sources: File name -> file, as `read_folder` gives them.

    Raises:
        PhraseBankError: A file has something wrong; the message names its line and key.
    """
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
    return Contents(
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
) -> Category:
    groups = {
        group: NounGroup(
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
    return Category(file.kind, groups[file.default_group], groups, without, tuple(own))
