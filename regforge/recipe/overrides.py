"""One recipe laid over another: `extends`, and `--set key=value`.

Mappings merge key by key; lists and single values replace what was there. `prompts.sets` replaces
too: its shares are one statement, and a share of a base recipe must not leak into it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from regforge.recipe.problems import Location, Place, Problem
from regforge.recipe.yaml_nodes import DEEPEST, Entry, Node, read_yaml

REPLACED_WHOLE: frozenset[Location] = frozenset({("prompts", "sets")})


def laid_over(base: Node, over: Node, location: Location = ()) -> Node:
    """The base with what the other says laid over it; neither is changed."""
    if (
        location in REPLACED_WHOLE
        or not isinstance(base.content, dict)
        or not isinstance(over.content, dict)
    ):
        return over
    entries = dict(base.content)
    for key, entry in over.content.items():
        below = entries.get(key)
        if below is not None:
            merged = laid_over(below.value, entry.value, (*location, key))
            entry = Entry(entry.place, merged)
        entries[key] = entry
    return Node(over.place, entries)


def apply_setting(root: Node, setting: str) -> list[Problem]:
    """Carry out one `--set key=value` on a recipe.

    The key's parts are separated by dots, and a number counts the items of a list from 0. The
    value is YAML: `50`, `null`, `[a, b]`.

    Returns:
        What is wrong with the setting; if anything is, the recipe is as it was.
    """
    key, equals, text = setting.partition("=")
    place = Place(source_of(setting), Path.cwd())
    parts = key.strip().split(".")
    if not equals or len(parts) > DEEPEST or not all(re.fullmatch(r"[\w-]+", p) for p in parts):
        return [Problem.at(place, (), "expected key=value, such as seed=1")]
    if parts == ["extends"]:
        return [Problem.at(place, ("extends",), "can be said only in a file")]
    value, problems = read_yaml(text, place)
    if not problems:
        return _put(root, parts, value or Node(place, None))
    return [
        replace(problem, key=".".join(filter(None, (key, problem.key)))) for problem in problems
    ]


def _put(root: Node, parts: list[str], value: Node) -> list[Problem]:
    node = root
    location: Location = ()
    for part in parts[:-1]:
        below = _below(node, part)
        if below is None and isinstance(node.content, dict):
            below = Node(value.place, {})
            node.content[part] = Entry(value.place, below)
        if below is None or (below.content is not None and not _has_parts(below)):
            name = ".".join(map(str, (*location, part)))
            return [Problem.at(value.place, tuple(parts), _no_way_through(node, name, location))]
        if below.content is None:
            below.content = {}
        node, location = below, (*location, part)
    return _put_last(node, parts, value)


def _put_last(node: Node, parts: list[str], value: Node) -> list[Problem]:
    last = parts[-1]
    if isinstance(node.content, dict):
        there = node.content.get(last)
        if there is not None:
            value = laid_over(there.value, value, tuple(parts))
        node.content[last] = Entry(value.place, value)
        return []
    if isinstance(node.content, list) and _below(node, last) is not None:
        node.content[int(last)] = value
        return []
    message = _no_way_through(node, ".".join(parts), tuple(parts[:-1]))
    return [Problem.at(value.place, tuple(parts), message)]


def _below(node: Node, part: str) -> Node | None:
    if isinstance(node.content, dict) and part in node.content:
        return node.content[part].value
    if isinstance(node.content, list) and re.fullmatch(r"[0-9]{1,6}", part):
        return next(iter(node.content[int(part) :]), None)
    return None


def _has_parts(node: Node) -> bool:
    return isinstance(node.content, dict | list)


def _no_way_through(node: Node, name: str, above: Location) -> str:
    if isinstance(node.content, list):
        count = f"{len(node.content)} items" if len(node.content) != 1 else "one item"
        return f"{'.'.join(map(str, above))} is a list of {count}, counted from 0"
    return f"{name} is a single value and has no keys"


def source_of(setting: str) -> str:
    """What messages call a setting."""
    setting = setting if setting.isprintable() else ascii(setting)
    return f"--set {setting if len(setting) <= 60 else f'{setting[:57]}...'}"
