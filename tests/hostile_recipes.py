"""Recipes as an enemy would write them: every number gives one, the same one on every machine.

Each begins as a recipe that regforge comes with, and is then changed a few times: values of wrong
types and sizes, paths to what is no file, floods of keys, YAML that explodes, templates that do.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Keys = tuple[str | int, ...]

NUMBERS: list[Any] = [
    *(0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.1, -0.0, 1e-320, 1e308),
    *(float("inf"), float("-inf"), float("nan"), True, False, None, 4096, 999_999_999),
]
TEXTS: list[Any] = [
    *("", " ", "\n", "\t", "a" * 1_000_000, "日本語", "👩‍👩‍👧", "ﬁ", "Ａ"),
    *("\u202eabc", "\ufeff", "e\u0301", "\x00", "\x1b[31m", "\x85", "\u2028", "null", "~"),
    *("yes", "2020-01-01", "0x1F", "1_000", "1:30"),
    *("{{ 7*7 }}", "${HOME}", "$(touch owned)", "`id`", "%s%n%d", "{0.__class__}", "../" * 40),
    *("embedded", "embedded/", "openai/", "hf://", "user/name", "user/name@", "a" * 300 + "/b"),
    "(a+)+$" * 1000,
    "\N{COMBINING ACUTE ACCENT}" * 5000,
]
PATHS = [
    *("/dev/zero", "/dev/null", "/dev/random", "/dev/full", "/dev/stdin", "/dev/tty", "/proc/kmsg"),
    *("/proc/self/mem", "pipe", "loop", "folder", "empty", "sparse", "binary", "latin", "line"),
    *("unreadable", "~nouser/x", "~", "a\0b", "", ".", "..", "/", "//", "n" * 5000, "d/" * 3000),
    *("absent", "absent/", "file:///etc/passwd", "http://127.0.0.1:1/x", "\ud800", "CON", "photos"),
    *("photos/1.png", "recipe.yaml", "lines", "*", "[", "-", "--", "phrases"),
]
SECTIONS = "subject prompts render curate dataset method data optimizer validation checkpoint hub"
PIECES = [
    *("{{ 'a'*10**10 }}", "{{ 10**10**10 }}", "{{ '%1000000000d'|format(1) }}", "{{ color }}"),
    *("{{ color|center(1000000000) }}", "{{ '{:{}}'.format(1, 10**9) }}", "{% include 't.j2' %}"),
    *("{% include '../secret/canary-7f3a' %}", "{% include 'secret' %}"),
    "{% import 't.j2' as t %}",
    *("{{ ''.__class__.__mro__ }}", "{{ self }}", "{{ cycler }}", "{{ class_noun.format }}"),
    *("{% if color %}" * 1500, "(" * 2000, "{{ " + "(" * 2000, "{#", "{% raw %}", "{%", "}}", "\0"),
    "{% for a in 'a'*999 %}{% for b in 'a'*999 %}{{ a }}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{{ m(n-1) }}{{ m(n-1) }}{% endmacro %}{{ m(9) }}",
    "{% set x = 'aaaa' %}" + "{% set x = x ~ x %}" * 50 + "{{ x }}",
    "{{ [color, class_noun]|join('a'*9999)|replace('a', 'b'*9999) }}",
    *("\udcff", "#" * 100_000, "{{ color|a|words|opening|closing }}", "{{ motion.x.y }}"),
    *("{{ 1e400 }}", "{{ 0x" + "f" * 9000 + " }}", "{{ color|round(99999, 'ceil') }}", "sks"),
]


@dataclass
class Hostile:
    """What follows `regforge check`, and how it came to be."""

    words: list[str]
    story: list[str] = field(default_factory=list)


def lay_out(folder: Path) -> None:
    """Put what the recipes name into a folder: pipes, loops, files that are none."""
    (folder / "secret").mkdir()
    (folder / "secret" / "canary-7f3a").write_text("CANARY {{ class_noun }} {{ color }}")
    work = folder / "work"
    work.mkdir()
    os.mkfifo(work / "pipe")
    (work / "loop").symlink_to("loop")
    (work / "secret").symlink_to("../secret/canary-7f3a")
    for name in ("folder", "photos", "phrases"):
        (work / name).mkdir()
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (64, 64), (9 * number, 0, 0)).save(work / "photos" / f"{number}.png")
        (work / "photos" / f"{number}.txt").write_text("a photo of sks cat on a mat")
    (work / "empty").touch()
    with (work / "sparse").open("wb") as stream:
        stream.truncate(2**42)
    (work / "binary").write_bytes(bytes(range(256)) * 40)
    (work / "latin").write_bytes("café\n".encode("latin-1") * 10)
    (work / "line").write_text("a" * 5_000_000)
    (work / "lines").write_text("red\nblue # comment\n# none\n\n" + "many words " * 100)
    (work / "unreadable").touch(0)


def hostile(number: int, work: Path, recipes: list[Path]) -> Hostile:
    """Write hostile recipe number `number` into a folder that `lay_out` has prepared."""
    rng = random.Random(number)
    base = rng.choice(recipes)
    made = Hostile([], [base.name])
    data: Any = yaml.safe_load(base.read_text(encoding="utf-8"))
    for key in ("images", "dataset"):
        for section in ("subject", "regularization"):
            if isinstance(data.get(section), dict) and key in data[section]:
                data[section][key] = "photos"
    for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3])):
        change = rng.choice(CHANGES)
        made.story.append(f"{change.__name__}: {str(change(data, rng, work))[:80]}")
    name = rng.choice(["r.yaml"] * 30 + ["r", "ö.yaml", "r\udcff.yaml", "r\n.yaml", "-r.yaml"])
    text = yaml.safe_dump(data, allow_unicode=rng.random() < 0.5, sort_keys=False, width=10**9)
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        spoil = rng.choice(SPOILED)
        made.story.append(spoil.__name__)
        content = spoil(content, rng)
    (work / name).write_bytes(content)
    made.words.append(f"./{name}")
    if rng.random() < 0.2:
        key = ".".join(map(str, rng.choice([*_paths(data)] or [("seed",)])))
        key = rng.choice([key, key, "a." * 5000 + "b", "9" * 5000, "prompts.slots." + "1" * 5000])
        value = str(
            rng.choice([*NUMBERS, *TEXTS, *PATHS, "[" * 200, "*a", "&a [*a]", "{", "!!x y"])
        )
        setting = f"{key}={value}"[:100_000].replace("\0", "")
        made.words += ["--set", setting]
        made.story.append(f"--set {setting[:80]}")
    return made


# ------------------------------------------------------------------------------------ the changes


def wrong_value(data: Any, rng: random.Random, work: Path) -> object:
    """Any value for any key."""
    keys = rng.choice([*_paths(data)] or [("seed",)])
    value = rng.choice([*NUMBERS, *TEXTS, *PATHS, [], {}, [[]], {"": {}}, [None] * 50])
    _put(data, keys, value)
    return keys, value if len(str(value)[:100]) < 100 else "..."


def path_to_nowhere(data: Any, rng: random.Random, work: Path) -> object:
    """A path where the recipe takes one."""
    keys: Keys = rng.choice(
        [
            ("extends",),
            ("subject", "images"),
            ("prompts", "template"),
            ("prompts", "vocabulary"),
            ("prompts", "messages"),
            ("prompts", "exclude"),
            ("prompts", "import", "dataset"),
            ("regularization", "dataset"),
            ("render", "model"),
            ("render", "lora"),
            ("base_model",),
        ]
    )
    path: Any = rng.choice(PATHS)
    _put(data, keys, [path] if keys[-1] == "exclude" else path)
    return keys, path[:40]


def phrases_from(data: Any, rng: random.Random, work: Path) -> object:
    """Slots whose phrases come from odd files and odd lists."""
    path = rng.choice(PATHS)
    slot: dict[str, Any] = {"name": rng.choice(["color", "a" * 40, "Ä", "class_noun", ""])}
    slot |= rng.choice(
        [
            {"file": path},
            {"values": [rng.choice(TEXTS) for _ in range(5)]},
            {"values": [f"phrase {n}" for n in range(5000)]},
            {"values": ["x"] * 3000, "weights": [1e300] * 3000},
            {"values": NUMBERS},
            {"from": "bank", "count": 10**9},
        ]
    )
    slots = [slot] if rng.random() < 0.7 else [dict(slot, name=f"s{n}") for n in range(300)]
    _put(data, ("prompts", "slots"), slots)
    return str(slot)[:60]


def template_from_hell(data: Any, rng: random.Random, work: Path) -> object:
    """A caption template with pieces that explode, or a message."""
    text = "{{ style | opening }} {{ [color, class_noun] | words | a }} {{ background }}\n"
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice(PIECES) + text[at:]
    name = rng.choice(["t.j2"] * 9 + ["m/system.j2"])
    (work / name).parent.mkdir(exist_ok=True)
    (work / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    if name == "t.j2":
        _put(data, ("prompts", "template"), "./t.j2")
        _put(data, ("prompts", "sets"), {"amplify": 1})
        _put(data, ("prompts", "slots"), [{"name": "color", "values": ["red", "blue", "x" * 300]}])
    else:
        _put(data, ("prompts", "messages"), "m")
    return text[:80]


def one_caption_for_all(data: Any, rng: random.Random, work: Path) -> object:
    """A template that says the same of all phrases, of which there are very many."""
    (work / "t.j2").write_text("{% if color or size or shape %}{% endif %}a {{ class_noun }}")
    many = [f"phrase {n}" for n in range(100)]
    _put(data, ("prompts", "template"), "./t.j2")
    _put(data, ("prompts", "sets"), {"amplify": 1})
    _put(data, ("prompts", "count"), rng.choice([3, 1000, 10**6]))
    slots = [{"name": name, "values": many} for name in ("color", "size", "shape")]
    _put(data, ("prompts", "slots"), slots)
    return "1,000,000 combinations"


def flood(data: Any, rng: random.Random, work: Path) -> object:
    """Thousands of unknown keys, slots or entries."""
    count, where = rng.choice([100, 5000, 20_000]), rng.choice(["", *SECTIONS.split()])
    there = data.setdefault(where, {}) if where else data
    if isinstance(there, dict):
        there |= {f"{rng.choice('abcdefgh') * rng.randint(1, 40)}{n}": n for n in range(count)}
    return count, where


def deep(data: Any, rng: random.Random, work: Path) -> object:
    """Lists in lists, mappings in mappings."""
    value: Any = "x"
    for _ in range(depth := rng.choice([30, 45, 60, 150])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    keys = rng.choice([*_paths(data)] or [("seed",)])
    _put(data, keys, value)
    return depth, keys


def without(data: Any, rng: random.Random, work: Path) -> object:
    """A key is gone."""
    keys = rng.choice([*_paths(data)] or [("seed",)])
    there = data
    for key in keys[:-1]:
        there = there[key]
    if isinstance(there, dict):
        there.pop(keys[-1], None)
    return keys


def extends_itself(data: Any, rng: random.Random, work: Path) -> object:
    """Recipes upon recipes, in circles and long chains."""
    depth = rng.choice([1, 2, 40, 400])
    for number in range(depth):
        (work / f"e{number}.yaml").write_text(f"extends: e{(number + 1) % depth}.yaml\n")
    if rng.random() < 0.5:
        (work / f"e{depth - 1}.yaml").write_text("seed: 1\n")
    data["extends"] = "e0.yaml"
    return depth


CHANGES: list[Callable[[Any, random.Random, Path], object]] = [
    *[wrong_value] * 4,
    *[path_to_nowhere] * 3,
    *[phrases_from] * 2,
    *[template_from_hell] * 3,
    one_caption_for_all,
    flood,
    deep,
    without,
    extends_itself,
]


# --------------------------------------------------------------------------------- spoiled content


def random_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes are others."""
    spoiled = bytearray(content)
    for _ in range(rng.randint(1, 20)):
        spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
    return bytes(spoiled)


def other_encoding(content: bytes, rng: random.Random) -> bytes:
    """UTF-16, Latin-1, marks of byte order, other ends of lines."""
    text = content.decode("utf-8", "replace")
    return rng.choice(
        [
            text.encode("utf-16"),
            text.encode("utf-32"),
            text.encode("latin-1", "replace"),
            b"\xef\xbb\xbf" * 2 + content,
            content.replace(b"\n", b"\r"),
            content.replace(b"\n", b"\r\n"),
            content.replace(b"  ", b"\t"),
            content.replace(b"\n", "\u2028".encode()),
            content + b"\0",
            b"",
            b"\n" * 900_000,
        ]
    )


def bombs(content: bytes, rng: random.Random) -> bytes:
    """YAML that stands for more than it is."""
    levels = "\n".join(
        f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9) if n else 'a'}]" for n in range(12)
    )
    merged = "\n".join(
        f"y{n}: &y{n} {{{'<<: [' + ', '.join([f'*y{n - 1}'] * 9) + ']' if n else 'a: 1'}}}"
        for n in range(12)
    )
    pieces = [
        levels,
        merged,
        "z: &z [*z]",
        "z: &z {<<: *z}",
        "z: " + "[" * 20_000,
        "z: " + "{a: " * 5000,
        "z:\n" + "".join(" " * n + "- \n" for n in range(1, 900)),
        "? " * 5000,
        "- " * 20_000,
        "z: !!python/object/apply:os.system [touch owned]",
        "z: !!binary aGVsbG8=",
        "z: !!timestamp 2001-12-14",
        "z: !<tag:yaml.org,2002:int> abc",
        "seed: 1\n" * 5000,
        "z: '" + "\\" * 100_000,
        'z: "' + "\\x" * 50_000,
        "z: |\n" + " a\n" * 200_000,
        "%YAML 9.9\n---\n",
        "---\n" * 5000,
        "z: &" + "a" * 300_000 + " 1",
        "0x" + "f" * 4300 + ": 1\nseed: 0x" + "f" * 4300,
        "seed: " + "9" * 400_000,
        "seed: 0o" + "7" * 9000,
        "seed: " + "1" * 300_000 + "e5",
        "render: {guidance_scale: 1e400, steps: 190:20:30}",
    ]
    return content + b"\n" + rng.choice(pieces).encode() + b"\n"


SPOILED: list[Callable[[bytes, random.Random], bytes]] = [
    random_bytes,
    other_encoding,
    bombs,
    bombs,
]


# ----------------------------------------------------------------------------------------- keys


def _paths(data: Any, above: Keys = ()) -> Iterator[Keys]:
    """Where the values of a recipe are, but for floods."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(data, dict):
        items = list(data.items())[:60]
    elif isinstance(data, list):
        items = list(enumerate(data))[:20]
    for key, value in items:
        yield (*above, key)
        if len(above) < 6:
            yield from _paths(value, (*above, key))


def _put(data: Any, keys: Keys, value: Any) -> None:
    for key in keys[:-1]:
        if isinstance(data, list):
            data = data[int(key)]
        else:
            if not isinstance(data.get(key), dict | list):
                data[key] = {}
            data = data[key]
    if isinstance(data, list):
        if isinstance(keys[-1], int) and keys[-1] < len(data):
            data[keys[-1]] = value
    else:
        data[keys[-1]] = value
