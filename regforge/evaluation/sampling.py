"""Samples to look at: a few prompts, some images of each, and a grid of them all.

    DIR/001.png 002.png ...     each with its prompt, seed and weights written into it
    DIR/base/001.png ...        the same prompts and seeds, drawn by the untouched base model
    DIR/grid.png                all of them, with captions
    DIR/samples.json            the request, and which image is which

The same request finds what is there and draws what is missing; another one gets a folder of its
own.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from regforge.dataset.card_parts import BACKGROUND, LABEL, TEXT, beside, fitted, stacked, text_block
from regforge.display import Displayed
from regforge.embedded.phrase_banks import with_noun
from regforge.evaluation.drawing import STEPS, ModelPool, seed_of
from regforge.evaluation.models import base_of, open_model
from regforge.evaluation.suites import (
    EvaluationError,
    ImageRequest,
    PersonalizedModel,
    home_of,
    without_identifier,
)
from regforge.files import read_object, storage_error, write_atomically
from regforge.journal import Reporter
from regforge.runs import OwnedFolder
from regforge.words import counted, from_here

REQUEST = "samples.json"
GRID = "grid.png"
BASE = "base"
TILE = 256
"""Longest side of an image in the grid, in pixels."""

_MOST = 10_000
_MOST_SHOWN = 400  # tiles of a grid; more would be gigabytes in memory, and nobody looks at them
_SMALL = 224  # smaller images are enlarged in the grid, by a whole factor, to about so many pixels
_MOST_COLUMNS = 8
_MARGIN, _GAP, _SECTION_GAP = 24, 8, 28
_TITLE_SIZE, _LABEL_SIZE = 20, 15


@dataclass(frozen=True)
class SampleImage:
    """One image, and the name of the model that drew it; `file` is relative to the folder."""

    file: str
    prompt: str
    number: int
    seed: int
    model: str


@dataclass(frozen=True)
class Samples(Displayed):
    """What `sample` drew, in order of prompts and samples; images of the base model last."""

    folder: Path
    model: PersonalizedModel
    images: Sequence[SampleImage]
    notes: Sequence[str] = ()

    @property
    def grid(self) -> Path:
        """All of them in one image."""
        return self.folder / GRID

    def shown_image(self) -> Path:
        """The grid."""
        return self.grid

    def __fspath__(self) -> str:
        return str(self.folder)

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "folder": str(self.folder),
            "grid": str(self.grid),
            "model": self.model.name,
            "where": self.model.where,
            "base_model": self.model.base,
            "weights": self.model.digest,
            "images": [asdict(each) for each in self.images],
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        """For people."""
        own = [each for each in self.images if each.model == self.model.name]
        prompts = list(dict.fromkeys(each.prompt for each in own))
        what = prompts[0] if len(prompts) == 1 else f"{len(prompts)} prompts"
        beside = len(self.images) - len(own)
        by_base = f", and {beside} by the base model" * bool(beside)
        return (
            f"{counted(len(own), 'image')} of {what}{by_base}\n"
            f"grid    {from_here(self.grid)}\n"
            f"images  {from_here(self.folder)}"
        )


def sample(
    model: str | os.PathLike[str] | PersonalizedModel,
    prompts: str | Sequence[str] = (),
    *,
    count: int = 8,
    out: str | Path | None = None,
    base: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    beside_base: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    reporter: Reporter | None = None,
) -> Samples:
    """Draw prompts with a model, and lay the images out in a grid.

    Killed at any instant, it loses the batch in flight; called again, it goes on.

    Args:
        model: See `open_model`.
        prompts: One or more; `{}` stands for the identifier and class noun. The prompts of the
            model's own validation by default.
        count: Images of each prompt.
        out: The folder to write to; a new one in `samples/` beside the model by default.
        base: The base model, where nothing says it.
        seed: Random seed.
        steps: Denoising steps; those of the model's validation, else 25, by default.
        guidance_scale: That of the model's validation, else its pipeline's own, by default.
        beside_base: Draw the same with the base model too, without the identifier.
        device: `cuda`, `cpu`, ...; the best there is by default.
        dtype: `float32`, `float16` or `bfloat16`; the best for the device by default.
        batch_size: Images at a time; as many as memory suffices for by default.
        reporter: Where progress goes; standard error by default.

    Raises:
        RegforgeError: There is no such model, it cannot be loaded or cannot draw, there is nothing
            to draw, or the folder is another's.
    """
    if not isinstance(model, PersonalizedModel):
        model = open_model(os.fspath(model), base=base)
    reporter = reporter or Reporter()
    if not 1 <= count <= _MOST:
        raise EvaluationError(f"{count} images of each prompt? It can be 1 to {_MOST:,}.")
    wanted = _prompts(model, [prompts] if isinstance(prompts, str) else prompts)
    requests = [
        ImageRequest(
            prompt,
            number,
            seed_of(seed, text, number),
            f"{place * count + number + 1:03d}.png",
            caption=without_identifier(prompt, model.subject),
        )
        for place, (text, prompt) in enumerate(wanted.items())
        for number in range(count)
    ]
    models = [model]
    if beside_base:
        below = base_of(model)
        if below is None:
            raise EvaluationError(
                f"{model.name} is no trained model, so it has no base model beside."
            )
        models.append(replace(below, name=below.base) if below.name == model.name else below)
    own_steps = model.setting("validation", "steps")
    own_steps = own_steps if isinstance(own_steps, int) else STEPS
    pool = ModelPool(
        device=device,
        dtype=dtype,
        steps=steps if steps is not None else own_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        reporter=reporter,
    )
    request = {
        "prompts": list(wanted),
        "count": count,
        "seed": seed,
        "beside_base": beside_base,
        "drawn": [[each.prompt, each.caption] for each in requests[::count]],
        **pool.settings_for(model),
    }
    folder = _folder(model, Path(out) if out is not None else None, request)
    notes = [*model.notes]
    unnamed = sum(each.prompt == each.caption for each in requests[::count])
    if prompts and unnamed and model.subject is not None and model.subject.identifier:
        notes.append(
            f"{unnamed} of {len(wanted)} prompts do not say '{model.subject.identifier}', so they "
            f"ask for any {model.subject.class_noun}, not for this one."
        )
    for note in notes:
        reporter.say(f"note: {note}")
    with _SamplesFolder(folder).locked(), pool:
        _write(folder, {"request": request})
        shown = min(count, max(1, _MOST_SHOWN // (len(wanted) * len(models))))
        images: list[SampleImage] = []
        rows: list[list[GridRow]] = [[] for _ in wanted]
        with reporter.task("drawing", len(wanted) * count * len(models), "images") as task:
            for drawer in models:
                if drawer is not model:
                    requests = [
                        replace(each, prompt=each.caption, file=f"{BASE}/{each.file}")
                        for each in requests
                    ]
                for row, first in zip(rows, requests[::count], strict=True):
                    name = drawer.name if drawer is model else f"{drawer.name}: {first.prompt}"
                    row.append((name if beside_base else "", []))
                with pool.use(drawer) as loaded:
                    drawn = loaded.draw(requests, folder=folder, task=task)
                    for number, image in enumerate(drawn):
                        if number % count < shown:
                            rows[number // count][-1][1].append(tile_of(image))
                images += [
                    SampleImage(str(e.file), e.prompt, e.number, e.seed, drawer.name)
                    for e in requests
                ]
        trained = f", {model.steps:,} steps" if model.steps else ""
        guidance = request["guidance_scale"]
        guided = f", guidance {guidance:g}" if guidance is not None else ""
        footer = f"{model.name}{trained}, on {model.base}; seed {seed}, "
        footer += f"{pool.steps} denoising steps{guided}"
        footer += f"; the first {shown} of each {count:,}" if shown < count else ""
        out_bytes = io.BytesIO()
        draw_grid(list(zip(wanted.values(), rows, strict=True)), footer=footer).save(
            out_bytes, "PNG"
        )
        write_atomically(folder / GRID, out_bytes.getvalue())
        made = Samples(folder, model, images, (*notes, *pool.notes))
        _write(folder, {"request": request, **made.as_dict()})
    return made


class _SamplesFolder(OwnedFolder):
    made = ("[0-9]*.png", f"{BASE}/[0-9]*.png", GRID, REQUEST)


def _prompts(model: PersonalizedModel, prompts: Sequence[str]) -> dict[str, str]:
    """Prompts as the user wrote them, each once, and as the model gets them."""
    texts = list(dict.fromkeys(prompts or model.prompts))
    if not texts:
        raise EvaluationError(
            f"Nothing says what {model.name} was taught to draw.", hint="Say it: --prompt TEXT"
        )
    if any(not text.strip() for text in texts):
        raise EvaluationError("A prompt is empty.", hint="Write what to draw, or leave it out.")
    for text in texts:
        if text != text.encode("utf-8", "replace").decode():
            raise EvaluationError(f"The prompt {text!r} is not UTF-8 text.")
    subject = model.subject
    if subject is None and any("{}" in text for text in texts):
        raise EvaluationError(
            f"Nothing says what {{}} stands for: {model.name} comes without its training recipe.",
            hint="Write the identifier and class noun in its place.",
        )
    return {text: with_noun(text, subject.name) if subject else text for text in texts}


# -------------------------------------------------------------------------------------- folders


def _folder(model: PersonalizedModel, out: Path | None, request: Mapping[str, Any]) -> Path:
    """The folder that the same request began, or a new one; `out` if it holds nothing else."""
    if out is not None:
        there = read_object(out / REQUEST).get("request")
        damaged = (out / REQUEST).exists()  # its request is lost; each image says what it shows
        foreign = there is None and _SamplesFolder(out).holds_others_files(ours=damaged)
        if (there is not None and there != request) or foreign:
            raise EvaluationError(
                f"{out} holds {'other samples' if there else 'other files than samples'}.",
                hint="Choose another folder with --out.",
            )
        return out
    parent = _beside(model)
    there = parent.iterdir() if parent.is_dir() else ()
    numbered = {int(path.name): path for path in there if path.name.isdecimal()}
    for number in sorted(numbered):
        if read_object(numbered[number] / REQUEST).get("request") == request:
            return numbered[number]
    number = max(numbered, default=0) + 1
    while True:
        folder = parent / str(number)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another process was quicker
            number += 1
            continue
        except OSError as error:
            raise storage_error(folder, error) from error
        return folder


def _beside(model: PersonalizedModel) -> Path:
    """The folder for the samples of a model: in its run, beside its file, else right here."""
    place = Path(model.where)
    trained = model.weights is not None or model.recipe is not None
    if not (trained and place.is_absolute()):
        return Path("samples") / model.name.rpartition("/")[2]
    return home_of(place) / "samples"


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_atomically(folder / REQUEST, f"{text}\n")


# ------------------------------------------------------------------------------------- the grid

GridRow = tuple[str, list[Image.Image]]
"""A label, which may be empty, and the images of a model, as `tile_of` makes them."""


def tile_of(image: Image.Image) -> Image.Image:
    """The image at the size that it has in a grid."""
    return fitted(image, TILE, _SMALL)


def draw_grid(
    sections: Sequence[tuple[str, Sequence[GridRow]]], *, footer: str = ""
) -> Image.Image:
    """All images, RGB, with their prompts above them, and the footer small below everything.

    Rows with more than eight images are broken evenly.
    """
    rows = [tiles for _, rows in sections for _, tiles in rows]
    columns = max((_columns(len(tiles)) for tiles in rows), default=1)
    cell = max((tile.width for tiles in rows for tile in tiles), default=TILE)
    width = max(columns * cell + (columns - 1) * _GAP, 2 * TILE)
    blocks = []
    for title, labelled in sections:
        parts = [text_block(title, width, _TITLE_SIZE, TEXT)]
        for label, tiles in labelled:
            parts += [text_block(label, width, _LABEL_SIZE, LABEL)] if label else []
            for start in range(0, len(tiles), columns):
                parts.append(beside(tiles[start : start + columns], cell, _GAP, framed=True))
        blocks.append(stacked(parts, _GAP))
    if footer:
        blocks.append(text_block(footer, width, _LABEL_SIZE, LABEL))
    return ImageOps.expand(stacked(blocks, _SECTION_GAP), _MARGIN, BACKGROUND)


def _columns(count: int) -> int:
    """How many images of a row stand side by side."""
    return math.ceil(count / max(1, math.ceil(count / _MOST_COLUMNS)))
