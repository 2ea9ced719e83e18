"""The generated parts of docs/trainers/*.md: what an export of a small dataset looks like.

`python -m regforge.export.reference --write` writes them again; without `--write` it says whether
they are up to date. They stand between two marks; what stands around them is written by hand. For
a checkout only.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path

from regforge import resources
from regforge.export import export_dataset
from regforge.export.results import Target
from regforge.export.writing import TRAINERS
from regforge.files import write_atomically
from regforge.records import Example

BEGIN = "<!-- generated:begin -->"
END = "<!-- generated:end -->"

ROOT = "/data/teapot"
"""Where the example says that it lies."""

_IMAGES, _PHOTOS, _SIDE = 24, 4, 1024
_MODEL = "stabilityai/stable-diffusion-xl-base-1.0"
_COLORS = ("red", "green", "blue", "white")
_SHAPES = ("round", "tall", "squat")
_BACKGROUNDS = ("on a wooden table", "in a garden")
_LANGUAGES = {".toml": "toml", ".json": "json", ".yaml": "yaml", ".sh": "bash", ".md": "yaml"}
_LONGEST = 60
_ENDS = 3


@dataclass
class _Example:
    """A dataset of a few drawn images."""

    name: str = "teapot-reg"
    layout: str = "regforge"
    revision: str | None = None
    license: str | None = "openrail++"
    slots: tuple[str, ...] = ("shape", "color", "background")
    run: Path | None = None
    notes: list[str] = field(default_factory=list)

    def examples(self, *, images: bool = True) -> Iterator[Example]:
        """See `CaptionedDataset`."""
        slots = product(_COLORS, _SHAPES, _BACKGROUNDS)
        for number, (color, shape, background) in enumerate(islice(slots, _IMAGES)):
            image = _drawn(number)
            example = Example(
                id=f"teapot-{number:06d}",
                image=image,
                text=f"a photo of a {color} {shape} teapot {background}",
                width=_SIDE,
                height=_SIDE,
                class_noun="teapot",
                kind="object",
                prompt_set="against" if number % 4 == 0 else "amplify",
                slots={"shape": shape, "color": color, "background": background},
                metadata={
                    "seed": number,
                    "model": _MODEL,
                    "image_digest": hashlib.sha256(image).hexdigest(),
                },
            )
            yield example if images else replace(example, image=b"")


@functools.cache
def _drawn(number: int) -> bytes:
    """An image of one colour."""
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE), (number * 10 % 256, 120, 200)).save(content, "PNG")
    return content.getvalue()


def generated() -> dict[str, str]:
    """The generated part of each trainer's page, by the name of the trainer."""
    parts = {}
    with tempfile.TemporaryDirectory() as temporary:
        photos = Path(temporary) / "photos"
        photos.mkdir()
        for number in range(_PHOTOS):
            (photos / f"{number}.png").write_bytes(_drawn(100 + number))
            caption = f"a photo of sks teapot, view {number + 1}"
            (photos / f"{number}.txt").write_text(caption, encoding="utf-8")
        for trainer in TRAINERS:
            out = Path(temporary) / trainer.name
            done = export_dataset(
                _Example(), to=[trainer.name], out=out, subject=photos, root=ROOT, check=True
            )
            (target,) = done.targets
            parts[trainer.name] = _part(target, out)
    return parts


def _part(target: Target, out: Path) -> str:
    checked = target.checked.as_text() if target.checked else ""
    lines = [
        "This is what comes out for 24 images of a teapot and 4 photos. The folder is to lie at",
        f"`{ROOT}` on the machine that trains.",
        "",
        "```bash",
        f"regforge export teapot-reg --to {target.name} --out teapot --subject photos/ \\",
        f"  --identifier sks --root {ROOT} --check",
        "```",
        "",
        "```",
        "teapot/",
        *_tree(out, 1),
        "```",
        "",
    ]
    for name in target.files:
        text = _text(out / name)
        if text is not None:
            language = _LANGUAGES.get(Path(name).suffix, "")
            lines += [f"`{name}`:", "", f"```{language}", *text.splitlines(), "```", ""]
    lines += ["The command:", "", "```bash", *target.command.splitlines(), "```", ""]
    lines += ["What it says about it:", "", *(f"- {note}" for note in target.notes), ""]
    return "\n".join([*lines, f"`--check` then says: `{checked}`."])


def _text(path: Path) -> str | None:
    """A file as the page shows it, shortened if it is long; None if it is no text."""
    if path.suffix == ".tar":
        return None
    # The digest of the content is another one with another encoder of PNG.
    text = re.sub(r"(?<=content )[0-9a-f]{16}$", "0" * 16, path.read_text("utf-8"), flags=re.M)
    lines = text.splitlines()
    if len(lines) > _LONGEST:
        lines = [*lines[:_LONGEST], f"... {len(lines) - _LONGEST} more lines"]
    return "\n".join(lines)


def _tree(folder: Path, depth: int) -> Iterator[str]:
    """The files of a folder; of many alike the first and the last."""
    entries = sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name))
    files = [path.name for path in entries if path.is_file()]
    for path in entries:
        if path.is_dir():
            yield f"{'  ' * depth}{path.name}/"
            yield from _tree(path, depth + 1)
    if len(files) > 4 * _ENDS:
        files = [*files[:_ENDS], "...", *files[-2:]]
    yield from (f"{'  ' * depth}{name}" for name in files)


def page(text: str, part: str) -> str:
    """A page with its generated part put in anew.

    Raises:
        ValueError: It has no place for one.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{begin}\n{part}\n{end}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Write the pages or compare them; 1 if one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write them")
    wanted = parser.parse_args(arguments)
    folder = resources.recipes().parent / "docs" / "trainers"
    stale = 0
    for name, part in generated().items():
        path = folder / f"{name}.md"
        there = path.read_text(encoding="utf-8") if path.is_file() else ""
        text = page(there or f"# Use a regforge dataset in {name}\n\n{BEGIN}\n{END}\n", part)
        if text != there and wanted.write:
            write_atomically(path, text)
        stale += text != there and not wanted.write
        state = "up to date" if text == there else "written" if wanted.write else "OUT OF DATE"
        print(f"{path.name}: {state}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
