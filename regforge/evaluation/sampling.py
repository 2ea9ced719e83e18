"""Images to look at: a few prompts, some samples of each, and a grid of them all.

    DIR/001.png 002.png ...     each with its prompt, seed and weights written into it
    DIR/base/001.png ...        the same prompts and seeds, drawn by the untouched base model
    DIR/grid.png                all of them, with captions
    DIR/samples.json            what was asked for, and which image is which

The same request finds what is there and draws what is missing; another one gets a folder of its
own. Knows prompts and folders; `drawing` draws and `grid` lays out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from regforge.evaluation.drawing import STEPS, Artist, seed_of
from regforge.evaluation.grid import Row, Section, draw_grid, tile_of
from regforge.evaluation.interface import EvaluationError, PersonalizedModel, Subject, Wanted
from regforge.evaluation.model_files import section
from regforge.evaluation.models import base_of, open_model, without_identifier
from regforge.files import parse_json, storage_error, write_atomically
from regforge.progress import Reporter, Task
from regforge.runs import OwnedFolder

REQUEST = "samples.json"
GRID = "grid.png"
BASE = "base"

_MOST = 10_000
_MOST_SHOWN = 400  # tiles of a grid; more would be gigabytes in memory, and nobody looks at them


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        file: Relative to the folder of the samples.
        prompt: What was drawn.
        number: Which sample of its prompt, from 0.
        seed: Of its noise.
        model: Name of the model that drew it.
    """

    file: str
    prompt: str
    number: int
    seed: int
    model: str


@dataclass(frozen=True)
class Samples:
    """What `sample` drew.

    Attributes:
        folder: Where it lies.
        model: Which model drew.
        images: In order of prompts and samples; those of the base model last.
        notes: What people should know about them, a sentence each.
    """

    folder: Path
    model: PersonalizedModel
    images: Sequence[Sample]
    notes: Sequence[str] = ()

    @property
    def grid(self) -> Path:
        """All of them in one image."""
        return self.folder / GRID

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
        count = "1 image" if len(own) == 1 else f"{len(own)} images"
        lines = [f"{count} of {what}" + f", and {beside} by the base model" * bool(beside)]
        lines.append(f"grid      {_short(self.grid)}")
        lines.append(f"images  {_short(self.folder)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Asked:
    """A prompt as the user wrote it, and as each model gets it."""

    text: str
    prompt: str
    base_prompt: str


def sample(
    model: str | Path | PersonalizedModel,
    prompts: Sequence[str] = (),
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
        model: What to draw with; see `open_model`.
        prompts: What to draw; `{}` stands for the identifier and class noun. The prompts of the
            model's own validation if left out.
        count: Images of each prompt.
        out: The folder to write to; a new one in `samples/` beside the model if left out.
        base: The base model, where nothing says it.
        seed: All noise follows from it and from the prompts.
        steps: Denoising steps; those of the model's validation, else 25, if left out.
        guidance_scale: Classifier-free guidance; that of the model's validation, else its
            pipeline's own, if left out.
        beside_base: Draw the same with the base model too, without the identifier.
        device: `cuda`, `cpu`, ...; the best there is if left out.
        dtype: `float32`, `float16` or `bfloat16`; the best for the device if left out.
        batch_size: Images at a time; as many as memory suffices for if left out.
        reporter: Where progress goes; standard error by default.

    Raises:
        EvaluationError: There is no such model, nothing to draw, or the folder is another's.
        RenderError: A model cannot be loaded, or cannot draw.
        StorageError: The folder cannot be written.
    """
    if not isinstance(model, PersonalizedModel):
        model = open_model(model, base=base)
    reporter = reporter or Reporter()
    if not 1 <= count <= _MOST:
        raise EvaluationError(f"{count} images of each prompt? It can be 1 to {_MOST:,}.")
    asked = _asked(model, prompts)
    below = base_of(model) if beside_base else None
    if below is not None and below.name == model.name:
        below = replace(below, name=below.base)
    if beside_base and below is None:
        raise EvaluationError(f"{model.name} is no trained model, so it has no base model beside.")
    artist = Artist(
        device=device,
        dtype=dtype,
        steps=_steps(model) if steps is None else steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        reporter=reporter,
    )
    request = {
        "prompts": [each.text for each in asked],
        "count": count,
        "seed": seed,
        "beside_base": beside_base,
        "drawn": [[each.prompt, each.base_prompt] for each in asked],
        **artist.settings_for(model),
    }
    folder = _folder(model, Path(out) if out is not None else None, request)
    notes = [*model.notes, *_unnamed(prompts, asked, model.subject)]
    for note in notes:
        reporter.say(f"note: {note}")
    with _SamplesFolder(folder).locked(), artist:
        write_atomically(folder / REQUEST, _json({"request": request}))
        rows_shown = len(asked) * (1 if below is None else 2)
        shown = min(count, max(1, _MOST_SHOWN // rows_shown))
        drawing = _Drawing(artist, folder, asked, count, seed, shown)
        with reporter.task("drawing", drawing.total(below), "images") as task:
            rows = [drawing.rows(model, task)]
            if below is not None:
                rows.append(drawing.rows(below, task, base=True))
                for row in rows[0]:
                    row.label = model.name
        grid = draw_grid(
            [
                Section(each.prompt, [row[number] for row in rows])
                for number, each in enumerate(asked)
            ],
            footer=_footer(model, artist, seed)
            + (f"; the first {shown} of each {count:,}" if shown < count else ""),
        )
        out_bytes = io.BytesIO()
        grid.save(out_bytes, "PNG")
        write_atomically(folder / GRID, out_bytes.getvalue())
        made = Samples(folder, model, drawing.images, (*notes, *artist.notes))
        write_atomically(folder / REQUEST, _json({"request": request, **made.as_dict()}))
    return made


class _SamplesFolder(OwnedFolder):
    made = ("[0-9]*.png", f"{BASE}/[0-9]*.png", GRID, REQUEST)


class _Drawing:
    """Draws the asked prompts with one model after the other, and remembers what was drawn."""

    def __init__(
        self,
        artist: Artist,
        folder: Path,
        asked: Sequence[_Asked],
        count: int,
        seed: int,
        shown: int,
    ) -> None:
        self.images: list[Sample] = []
        self._artist = artist
        self._folder = folder
        self._asked = asked
        self._count = count
        self._seed = seed
        self._shown = shown  # of each prompt

    def total(self, base: PersonalizedModel | None) -> int:
        return len(self._asked) * self._count * (1 if base is None else 2)

    def rows(self, model: PersonalizedModel, task: Task, *, base: bool = False) -> list[Row]:
        """A row of small images for each prompt."""
        rows = [
            Row(f"{model.name}: {each.base_prompt}" if base else "", []) for each in self._asked
        ]
        with self._artist.using(model) as pen:
            drawn = pen.draw(list(self._wanted(base=base)), folder=self._folder, task=task)
            for place, each in enumerate(drawn):
                tiles = rows[place // self._count].tiles
                if len(tiles) < self._shown:
                    tiles.append(tile_of(each.image))
                wanted = each.wanted
                self.images.append(
                    Sample(str(wanted.file), wanted.prompt, wanted.number, wanted.seed, model.name)
                )
        return rows

    def _wanted(self, *, base: bool) -> Iterator[Wanted]:
        prefix = f"{BASE}/" if base else ""
        for place, each in enumerate(self._asked):
            for number in range(self._count):
                yield Wanted(
                    each.base_prompt if base else each.prompt,
                    number,
                    seed_of(self._seed, each.text, number),
                    f"{prefix}{place * self._count + number + 1:03d}.png",
                )


# ------------------------------------------------------------------------------------- prompts


def _asked(model: PersonalizedModel, prompts: Sequence[str]) -> list[_Asked]:
    """What is drawn, each prompt once.

    Raises:
        EvaluationError: There is nothing to draw, or nobody knows what `{}` stands for.
    """
    texts = list(dict.fromkeys(prompts)) or list(dict.fromkeys(model.prompts))
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
    name = f"{subject.identifier} {subject.class_noun}".strip() if subject else ""
    return [
        _Asked(
            text,
            text.replace("{}", name),
            without_identifier(text.replace("{}", name), subject),
        )
        for text in texts
    ]


def _unnamed(
    given: Sequence[str], asked: Sequence[_Asked], subject: Subject | None
) -> Iterator[str]:
    """A note on prompts of the user's that do not call the subject by its name."""
    if not given or subject is None or not subject.identifier:
        return
    silent = [each.prompt for each in asked if each.prompt == each.base_prompt]
    if silent:
        yield (
            f"{len(silent)} of {len(asked)} prompts do not say '{subject.identifier}', so they ask "
            f"for any {subject.class_noun}, not for this one."
        )


def _steps(model: PersonalizedModel) -> int:
    own = section(model.recipe, "validation").get("steps")
    return own if isinstance(own, int) else STEPS


def _footer(model: PersonalizedModel, artist: Artist, seed: int) -> str:
    trained = f", {model.steps:,} steps" if model.steps else ""
    guidance = artist.settings_for(model)["guidance_scale"]
    guided = f", guidance {guidance:g}" if guidance is not None else ""
    return (
        f"{model.name}{trained}, on {model.base}; seed {seed}, {artist.steps} denoising steps"
        f"{guided}"
    )


# -------------------------------------------------------------------------------------- folders


def _folder(model: PersonalizedModel, out: Path | None, request: Mapping[str, Any]) -> Path:
    """Where to write: what the same request began, or a new folder.

    Raises:
        EvaluationError: `out` holds something else.
        StorageError: It cannot be created.
    """
    if out is not None:
        there = _request_in(out)
        damaged = (out / REQUEST).exists()  # who asked for these is lost; each says what it shows
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
        if _request_in(numbered[number]) == request:
            return numbered[number]
    number = max(numbered, default=0) + 1
    while True:
        folder = parent / str(number)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # somebody else was quicker
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
    folder = place.parent if place.is_file() else place
    if folder.name in ("lora", "model"):
        folder = folder.parent
    return folder / "samples"


def _request_in(folder: Path) -> Any:
    """What the samples in a folder were asked for by; None if there are none."""
    try:
        content = parse_json((folder / REQUEST).read_bytes())
    except (OSError, ValueError):
        return None
    return content.get("request") if isinstance(content, dict) else None


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _short(path: Path) -> Path:
    """The path as a person in this folder would write it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
