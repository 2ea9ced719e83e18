"""Chooses which of many files are the dataset, by the card (README.md), names and sizes.

The card's word goes first. It follows `datasets`: `configs` names the files of each split, as
patterns (https://huggingface.co/docs/hub/datasets-manual-configuration). Without it, the kind of
file that has most of the bytes is the dataset: archives beside a few preview images, or images
beside a small archive.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml

from regforge.dataset.sources.caption_columns import SIDECARS
from regforge.dataset.sources.trees import (
    CARD,
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    UNREADABLE,
    CannotOpen,
    Tree,
    read_bytes,
    stem_of,
    suffix_of,
)
from regforge.recipe.named_files import alike, is_folder
from regforge.words import counted, listed

Kind = Literal["parquet", "images", "tar", "zip"]


METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Files that say something about the images in their folder and below, as `datasets` reads them."""

EXPORT = "export.json"
"""Written by `regforge export`, whose images lie in `images`; the rest are the same again."""

_LONGEST_PATTERN, _MOST_PATTERNS = 1000, 1000
_MOST_CARD_BYTES = 2**22
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_OWN = re.compile(r"data/train-\d+-of-\d+\.parquet")
_TAR = re.compile(r"\.(?:tar|tar\.gz|tgz)$", re.IGNORECASE)
_NOUNS: dict[Kind, str] = {
    "parquet": "Parquet file",
    "images": "image",
    "tar": ".tar archive",
    "zip": ".zip archive",
}
# As `datasets` names splits, and only where the name says nothing else: "test tubes" is no split.
_SPLIT_FOLDER = re.compile(
    r"(?:data/)?(train|training|validation|valid|val|dev|test|testing|eval|evaluation)/"
)
_SPLIT_FILE = re.compile(
    r"(?:.*/)?(train|validation|test)(?:-\d+-of-\d+[^/]*|-\d+)?\.(?:parquet|tar|tar\.gz|tgz|zip)"
)


@dataclass(frozen=True)
class DeclaredData:
    """What a card's front matter declares of the data; the notes are about what was left out."""

    license: str | None = None
    patterns: tuple[str, ...] | None = None  # where the data of the training split lies
    notes: tuple[str, ...] = ()


def read_card(tree: Tree, where: str, wanted: str | None = None) -> DeclaredData:
    """Read the card among some files; nothing is declared if there is none.

    `wanted` is a configuration; by default the one that `load_dataset` takes.

    Raises:
        CannotOpen: There are several configurations and none is the default, or not the one that
            is wanted; `where` names the dataset.
        HubError: The Hub does not give it.
    """
    if CARD not in tree.files:
        return DeclaredData()
    try:
        text = read_bytes(tree, CARD, _MOST_CARD_BYTES).decode("utf-8-sig", errors="replace")
    except UNREADABLE:
        return DeclaredData(notes=("The card cannot be read.",))
    found = _FRONT_MATTER.match(text)
    try:
        front = yaml.safe_load(found[1]) if found else {}
    except (yaml.YAMLError, RecursionError, ValueError):
        return DeclaredData(notes=("The card's front matter is not valid YAML, and was not read.",))
    if not isinstance(front, dict):
        return DeclaredData()
    notes: list[str] = []
    config = _config(front.get("configs"), where, wanted, notes)
    patterns = _train_patterns(config, notes) if config else None
    terms = front.get("license")
    if terms == "other" and isinstance(front.get("license_name"), str):
        terms = front["license_name"]
    names = terms if isinstance(terms, list) else [terms]
    license_id = ", ".join(name for name in names if isinstance(name, str)) or None
    return DeclaredData(license_id, patterns, tuple(notes))


def _config(
    configs: Any, where: str, wanted: str | None, notes: list[str]
) -> Mapping[str, Any] | None:
    """The configuration that is wanted, else the one that `load_dataset` takes, if there is any."""
    listing = configs if isinstance(configs, list) else []
    named: dict[str, Mapping[str, Any]] = {
        str(each["config_name"]): each
        for each in listing
        if isinstance(each, dict) and "config_name" in each
    }
    default = (name for name, each in named.items() if name == "default" or each.get("default"))
    chosen = wanted or next(default, next(iter(named)) if len(named) == 1 else None)
    if chosen in named:
        if others := [name for name in named if name != chosen and wanted is None]:
            notes.append(f"Read the configuration {chosen}, and not {listed(others)}.")
        return named[chosen]
    if not named and wanted is None:
        return None
    there = listed(list(named), 30)
    if wanted is not None:
        raise CannotOpen(f"{where} has no configuration {wanted!r}; it has {there or 'none'}.")
    one = next(iter(named))
    hint = f"Name one of them: {where}:{one}."
    if is_folder(Path(where)):
        hint = f"Say `default: true` of one of them in {where}/{CARD}."
        if is_folder(Path(where, one)):
            hint = f"Name the folder of one of them: {where}/{one}."
    raise CannotOpen(f"{where} holds several datasets: {there}.", hint=hint)


def _train_patterns(config: Mapping[str, Any], notes: list[str]) -> tuple[str, ...] | None:
    folder = str(config.get("data_dir") or "").strip("/")
    splits = dict(_splits(config.get("data_files")))
    if not splits:
        return (f"{folder}/**",) if folder else None
    chosen = "train" if "train" in splits else next(iter(splits))
    if len(splits) > 1:
        others = [name for name in splits if name != chosen]
        notes.append(f"Read the split {chosen}, and not {listed(others)}.")
    return tuple(f"{folder}/{path}" if folder else path for path in splits[chosen])


def _splits(data_files: Any) -> Iterator[tuple[str, list[str]]]:
    """(split, patterns), of any form in which `data_files` may be written."""
    if isinstance(data_files, dict):
        yield from ((str(split), _texts(paths)) for split, paths in data_files.items())
    elif isinstance(data_files, list) and any(isinstance(each, dict) for each in data_files):
        for each in data_files:
            if isinstance(each, dict):
                yield str(each.get("split", "train")), _texts(each.get("path"))
    elif data_files:
        yield "train", _texts(data_files)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each.removeprefix("./") for each in values if isinstance(each, str)]


@dataclass(frozen=True)
class Choice:
    """The files of a dataset, what lies beside them (captions, metadata, the card), and notes."""

    kind: Kind
    data: tuple[str, ...]
    beside: tuple[str, ...]
    notes: tuple[str, ...]


def choose(files: Mapping[str, int], card: DeclaredData, where: str) -> Choice:
    """Find the dataset among some files, given as path -> size in bytes.

    Raises:
        CannotOpen: There are no images; `where` names the place.
    """
    notes = list(card.notes)
    named = _named_by(card, files, notes)
    kinds = _by_kind(named)
    if not kinds:
        raise _no_images(files, where)
    kind: Kind = max(kinds, key=lambda kind: (sum(files[path] for path in kinds[kind]), kind))
    if any(_OWN.fullmatch(path) for path in kinds.get("parquet", ())):
        kind = "parquet"
    for other, paths in kinds.items():
        if other != kind:
            notes.append(
                f"Left out: {counted(len(paths), _NOUNS[other])} ({listed(sorted(paths), 3)})."
            )
    data = sorted(kinds[kind])
    if kind == "images" and EXPORT in files:
        data = [path for path in data if path.startswith("images/")] or data
    elif card.patterns is None:
        data = _train_split(data, kind, notes)
    unread = sorted(path for path in named if suffix_of(path) in UNREAD_SUFFIXES)
    if unread:
        suffixes = ", ".join(sorted({suffix_of(path) for path in unread}))
        notes.append(
            f"Left out: {len(unread):,} {'images' if len(unread) > 1 else 'image'} of a kind "
            f"that is not read ({suffixes}): {listed(unread, 3)}."
        )
    return Choice(kind, tuple(data), _beside(kind, data, files), tuple(notes))


def _named_by(card: DeclaredData, files: Mapping[str, int], notes: list[str]) -> Sequence[str]:
    """The files that the card names; all of them if it names none that is there."""
    if card.patterns is None:
        return list(files)
    patterns = [each for each in dict.fromkeys(card.patterns) if len(each) <= _LONGEST_PATTERN]
    named = [path for path in files if any(fits(path, p) for p in patterns[:_MOST_PATTERNS])]
    if _by_kind(named):
        return named
    notes.append(
        f"The card says that the data is {listed(card.patterns, 3)}, where no images are; all "
        "files were looked at."
    )
    return list(files)


def fits(path: str, pattern: str) -> bool:
    """Whether a path is named by a pattern, by the rules by which `datasets` reads them.

    `*` and `?` stand for characters of one name, `**` for any number of folders. Not by one regular
    expression: a stranger's pattern can keep that busy for ever.
    """
    parts, wanted = path.split("/"), pattern.split("/")
    reached = {0}  # how many parts of the path the pattern may have used up
    for number, each in enumerate(wanted, 1):
        if each == "**":
            least = min(reached, default=len(parts)) + (number == len(wanted))
            reached = set(range(least, len(parts) + 1)) if reached else set()
        else:
            reached = {n + 1 for n in reached if n < len(parts) and fnmatchcase(parts[n], each)}
    return len(parts) in reached


def _by_kind(paths: Iterable[str]) -> dict[Kind, list[str]]:
    found: dict[Kind, list[str]] = {}
    for path in paths:
        kind = _kind_of(path)
        if kind is not None:
            found.setdefault(kind, []).append(path)
    return found


def _kind_of(path: str) -> Kind | None:
    if path.rpartition("/")[2] in METADATA:
        return None
    suffix = suffix_of(path)
    if suffix in IMAGE_SUFFIXES:
        return "images"
    if suffix == ".parquet":
        return "parquet"
    if suffix == ".zip":
        return "zip"
    return "tar" if _TAR.search(path) else None


def _train_split(data: list[str], kind: Kind, notes: list[str]) -> list[str]:
    """Only the training split, if the names of files or folders tell several apart."""
    split_of = {
        path: found[1]
        for path in data
        if (found := _SPLIT_FOLDER.match(path) or _SPLIT_FILE.fullmatch(path))
    }
    if not any(split in ("train", "training") for split in split_of.values()):
        return data
    others = Counter(split for split in split_of.values() if not split.startswith("train"))
    if not others:
        return data
    count = counted(others.total(), _NOUNS[kind])
    notes.append(f"Read the split train, and not {listed(sorted(others))} ({count}).")
    return [path for path in data if split_of.get(path, "train").startswith("train")]


def _beside(kind: Kind, data: Sequence[str], files: Mapping[str, int]) -> tuple[str, ...]:
    card = [CARD] if CARD in files else []
    if kind != "images":
        return tuple(card)
    wanted = {alike(stem_of(path) + suffix) for path in data for suffix in SIDECARS}
    return tuple(
        card
        + [path for path in files if alike(path) in wanted or path.rpartition("/")[2] in METADATA]
    )


def _no_images(files: Mapping[str, int], where: str) -> CannotOpen:
    if not files:
        return CannotOpen(f"{where} is empty.")
    kinds = Counter(suffix_of(path) or "no suffix" for path in files)
    found = [f"{count:,} with {suffix}" for suffix, count in kinds.most_common()]
    hint = "Images (PNG, JPEG, WebP, ...), .parquet, .tar and .zip files are read."
    if ".arrow" in kinds:
        hint = "It was written by save_to_disk; write it with to_parquet() instead."
    elif UNREAD_SUFFIXES & kinds.keys():
        hint = "Save its images as PNG, JPEG or WebP."
    return CannotOpen(f"{where} holds no images; its files: {listed(found, 6)}.", hint=hint)
