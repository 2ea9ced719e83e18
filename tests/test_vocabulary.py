"""The words of the package are the field's: an image is an image, names say what things are."""

import ast
import re
from pathlib import Path

import pytest

# Only captions and the columns of others say "picture": openings that models have learned, and
# lists of words that mean an image.
CAPTIONS = re.compile(
    r"\b(a|an|the) (\{?\w+\}? ){0,2}picture (of|in)\b"
    r"|\"(a )?picture\"|picture(-perfect| frame|[| ]image|\[| plate| pic\b| shot\b| portrait)"
    r"|(cross-stitch|embroidered|needle-felted) picture\b",
    re.IGNORECASE,
)
DATA = (
    "regforge/embedded/banks/",
    "regforge/embedded/tinyworld/",
    "regforge/embedded/judge/alignment",
)
WHIMSICAL = {
    *("Artist", "Asked", "Claim", "Gauge", "Known", "Look", "Painter", "Pen", "Purse", "Pursuit"),
    *("Sayings", "Turns", "Wanted", "look_at", "put_down", "take_up"),
}


def texts(repo: Path) -> list[Path]:
    found = (path for top in ("regforge", "docs", "templates") for path in (repo / top).rglob("*"))
    suffixes = {".py", ".md", ".j2", ".css", ".js", ".html", ".yaml"}
    return [path for path in found if path.suffix in suffixes and "__pycache__" not in path.parts]


def says_picture(text: str) -> list[str]:
    """The lines that say picture where no caption does."""
    return [line for line in text.splitlines() if "picture" in CAPTIONS.sub("", line).lower()]


def test_an_image_is_called_an_image(repo: Path) -> None:
    lines = {
        str(path.relative_to(repo)): found
        for path in texts(repo)
        if not str(path.relative_to(repo)).startswith(DATA)
        and (found := says_picture(path.read_text(encoding="utf-8")))
    }
    assert lines == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('"""Draws a picture."""', True),
        ("pictures = []", True),
        ("class PictureSet:", True),
        ('prompt = "a picture of a cat"', False),
        ('WORDS = "photo photograph picture image"', False),
    ],
)
def test_only_captions_may_say_picture(line: str, found: bool) -> None:
    assert bool(says_picture(line)) is found


def test_names_are_plain(repo: Path) -> None:
    names = {
        f"{path.name}:{node.lineno} {node.name}"
        for path in (repo / "regforge").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name.strip("_") in WHIMSICAL
    }
    assert names == set()
