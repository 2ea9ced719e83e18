"""What a dataset's card (README.md) says to programs: its licence, and which files are the data.

Follows `datasets`: `configs` names the files of each split, as patterns
(https://huggingface.co/docs/hub/datasets-manual-configuration).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from regforge.dataset.sources.captions import listed
from regforge.dataset.sources.trees import UNREADABLE, Tree, read_bytes

CARD = "README.md"

_MOST_BYTES = 2**22
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """What the front matter says.

    Attributes:
        license: Such as `mit`; None if it does not say.
        patterns: Where the data of the training split lies; None if it does not say.
        notes: What was chosen among several, a sentence each.
    """

    license: str | None = None
    patterns: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def read_card(tree: Tree) -> Card:
    """The card among some files; an empty one if there is none.

    Raises:
        HubError: The Hub does not give it.
    """
    if CARD not in tree.files:
        return Card()
    try:
        text = read_bytes(tree, CARD, _MOST_BYTES).decode("utf-8-sig", errors="replace")
    except UNREADABLE:
        return Card(notes=("The card cannot be read.",))
    found = _FRONT_MATTER.match(text)
    try:
        front = yaml.safe_load(found[1]) if found else {}
    except (yaml.YAMLError, RecursionError, ValueError):
        return Card(notes=("The card's front matter is not valid YAML, and was not read.",))
    return _card(front) if isinstance(front, dict) else Card()


def _card(front: Mapping[str, Any]) -> Card:
    notes: list[str] = []
    config = _default_config(front.get("configs"), notes)
    patterns = _train_patterns(config, notes) if config else None
    return Card(_license(front), patterns, tuple(notes))


def _license(front: Mapping[str, Any]) -> str | None:
    value = front.get("license")
    if value == "other" and isinstance(front.get("license_name"), str):
        value = front["license_name"]
    names = value if isinstance(value, list) else [value]
    return ", ".join(name for name in names if isinstance(name, str)) or None


def _default_config(configs: Any, notes: list[str]) -> Mapping[str, Any] | None:
    """The configuration that `load_dataset` takes, or the first."""
    named = [each for each in configs or () if isinstance(each, dict) and "config_name" in each]
    if not named:
        return None
    chosen: Mapping[str, Any] = next(
        (each for each in named if each["config_name"] == "default" or each.get("default")),
        named[0],
    )
    if len(named) > 1:
        others = [str(each["config_name"]) for each in named if each is not chosen]
        notes.append(f"Read the configuration {chosen['config_name']}, and not {listed(others)}.")
    return chosen


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
