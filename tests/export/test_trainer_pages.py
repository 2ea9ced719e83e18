"""The generated parts of docs/trainers/*.md: what an export of a small dataset looks like.

`python tests/export/test_trainer_pages.py --write` writes them again; without it they are compared.
They stand between two marks; what stands around them is written by hand.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import export_samples as samples
import pytest
from own_code import PARSERS

from regforge.exporting.checking import Target
from regforge.exporting.writing import TRAINERS
from regforge.recipe.pipelines import FAMILIES, NAMED

BEGIN = "<!-- generated:begin -->"
END = "<!-- generated:end -->"
ROOT = "/data/teapot"
PAGES = Path(__file__).parents[2] / "docs" / "trainers"
EXPORTING = PAGES.parent / "exporting.md"

_LANGUAGES = {
    ".toml": "toml",
    ".json": "json",
    ".yaml": "yaml",
    ".sh": "bash",
    ".md": "yaml",
    ".jsonl": "json",
}
_LONGEST = 60


def teapots() -> samples.Memory:
    """A dataset of 24 drawn images."""
    colors, shapes = ("red", "green", "blue", "white"), ("round", "tall", "squat")
    slots = product(colors, shapes, ("on a wooden table", "in a garden"))
    rows = []
    for number, (color, shape, background) in enumerate(islice(slots, 24)):
        image = samples.make_image(number, (1024, 1024))
        digest = hashlib.sha256(image).hexdigest()
        row = samples.example(
            number,
            f"a photo of a {color} {shape} teapot {background}",
            image=image,
            size=(1024, 1024),
            class_noun="teapot",
            kind="object",
            prompt_set="against" if number % 4 == 0 else "amplify",
            slots={"shape": shape, "color": color, "background": background},
            metadata={"seed": number, "model": samples.SDXL, "image_digest": digest},
        )
        rows.append(replace(row, id=f"teapot-{number:06d}"))
    return samples.Memory(rows, name="teapot-reg", slots=("shape", "color", "background"))


def generated() -> dict[str, str]:
    """The generated part of each trainer's page, by the name of the trainer."""
    parts, dataset = {}, teapots()
    with tempfile.TemporaryDirectory() as temporary:
        captions = [f"a photo of sks teapot, view {number}" for number in range(1, 5)]
        photos = samples.photo_folder(Path(temporary) / "photos", captions, "png", (64, 64))
        for trainer in TRAINERS:
            out = Path(temporary) / trainer.name
            # The images are SDXL's, which is named where the trainer has no training for it.
            families = list(trainer.families or ["sdxl"])
            model = NAMED["sdxl" if "sdxl" in families else families[0]].repository
            options = {"subject": photos, "base_model": model, "root": ROOT, "check": True}
            done = samples.export(dataset, out, trainer.name, **options)
            parts[trainer.name] = _part(done.targets[0], out, model)
    return parts


def _part(target: Target, out: Path, model: str) -> str:
    checked = target.checked.as_text() if target.checked else ""
    shown = [
        (name, _shown(out / name)) for name in target.files if not name.endswith((".tar", ".zip"))
    ]
    files = [
        f"`{name}`:\n\n```{_LANGUAGES.get(Path(name).suffix, '')}\n{text}\n```\n"
        for name, text in shown
    ]
    return "\n".join(
        [
            "This is what comes out for 24 images of a teapot and 4 photos. "
            f"The folder is to lie at\n`{ROOT}` on the machine that trains.\n",
            "```bash",
            f"regforge export teapot-reg --to {target.name} --out teapot --subject photos/ \\",
            *([] if model == samples.SDXL else [f"  --base-model {model} \\"]),
            f"  --identifier sks --root {ROOT} --check",
            "```\n",
            "```\nteapot/",
            *_tree(out, 1),
            "```\n",
            *files,
            f"The command:\n\n```bash\n{target.command}\n```\n",
            "What it says about it:\n",
            *(f"- {note}" for note in target.notes),
            f"\n`--check` then says: `{checked}`.",
        ]
    )


def _shown(path: Path) -> str:
    """A file as the page shows it, shortened if it is long."""
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
    if len(files) > 12:
        files = [*files[:3], "...", *files[-2:]]
    yield from (f"{'  ' * depth}{name}" for name in files)


def page(text: str, part: str) -> str:
    """A page with its generated part put in anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{begin}\n{part}\n{end}{after}"


@pytest.mark.slow
def test_the_pages_show_what_comes_out() -> None:
    parts = generated()
    assert list(parts) == [trainer.name for trainer in TRAINERS]
    for name, part in parts.items():
        text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert page(text, part) == text, "run python tests/export/test_trainer_pages.py --write"


OWN_CODE = {*PARSERS, "musubi-tuner", "diffusion-pipe", "diffsynth"}
"""Trainers whose own parsers were given every command: the first by own_code.py, the others by hand
at the commits of mixing_arguments.py."""


def base_models() -> str:
    """The table of docs/exporting.md: who trains which base model."""
    trainers = [trainer for trainer in TRAINERS if trainer.families is not None]
    rows = [
        ["`--family`", *(f"`{trainer.name}`" for trainer in trainers)],
        ["---"] * (len(trainers) + 1),
    ]
    for family in FAMILIES:
        cells = [
            ("own code" if trainer.name in OWN_CODE else "restated")
            if trainer.trains(family)
            else "refused"
            for trainer in trainers
        ]
        rows.append([f"`{family.name}`, {family.title}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_the_table_of_base_models_is_up_to_date() -> None:
    text = EXPORTING.read_text(encoding="utf-8")
    assert page(text, base_models()) == text, (
        "run python tests/export/test_trainer_pages.py --write"
    )


def test_there_is_a_page_for_each_trainer_and_all_are_linked(repo: Path) -> None:
    pages = {path.stem for path in PAGES.glob("*.md")}
    assert pages == {trainer.name for trainer in TRAINERS}
    text = (repo / "docs" / "exporting.md").read_text(encoding="utf-8")
    assert all(f"(trainers/{name}.md)" in text for name in pages)


if __name__ == "__main__":
    stale = 0
    parts = {PAGES / f"{trainer}.md": part for trainer, part in generated().items()}
    for path, part in {**parts, EXPORTING: base_models()}.items():
        new = page(path.read_text(encoding="utf-8"), part)
        if new != path.read_text(encoding="utf-8"):
            stale += 1
            print(f"{path.name} is out of date")
            if "--write" in sys.argv:
                path.write_text(new, encoding="utf-8")
    sys.exit(stale and "--write" not in sys.argv)
