"""An evaluation from models to a page: draws, measures, sums up, writes.

    OUT/images/<model>-<digest>/...   what was drawn, with what made it written into each file
    OUT/references/<subject>/...        small copies of the photos that images are compared with
    OUT/evaluation.json                 all scores
    OUT/report.html  summary.png        for people
    OUT/state.json                      whose folder it is

Knows the order of things and what goes from one to the next, and no part's inside.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regforge.evaluation.drawing import STEPS, Artist
from regforge.evaluation.folder import EvaluationFolder, default_folder
from regforge.evaluation.interface import (
    Drawn,
    EvaluationError,
    PersonalizedModel,
    Subject,
)
from regforge.evaluation.model_files import normal
from regforge.evaluation.models import base_of
from regforge.evaluation.planning import (
    Row,
    class_questions_for,
    guidance_for,
    note_on_sizes,
    open_all,
    questions_for,
    row_of,
    rows_of,
    settings_of,
)
from regforge.evaluation.references import References, name_of, references_for
from regforge.evaluation.results import FILE, Evaluation, ModelResult, compare, summarize
from regforge.evaluation.steps import best_steps, worth_comparing
from regforge.progress import Reporter, duration

if TYPE_CHECKING:
    from regforge.evaluation.measuring import Gauge, Known

SAMPLES = 4
"""Images of each prompt, as DreamBench has it."""

_CLASS_SAMPLES = 8  # times the samples of a prompt
_MOST = 10_000  # of anything that is counted here
_ENOUGH = 40  # images that say how long one takes, though the first batch is not counted


def evaluate(
    models: Sequence[str | Path | PersonalizedModel],
    *,
    out: str | Path | None = None,
    subject: Subject | str | Path | None = None,
    references: str | Path | None = None,
    suites: Sequence[str | Path] | None = None,
    samples: int = SAMPLES,
    class_samples: int | None = None,
    seed: int = 0,
    steps: int = STEPS,
    guidance_scale: float | None = None,
    base_model: str | Path | None = None,
    structure: str | None = None,
    alignment: str | None = None,
    lettering: bool = True,
    with_base: bool = True,
    snapshots: bool = False,
    device: str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Draw the same prompts with the same seeds from each model, and measure the images.

    Killed at any instant, it loses the batch in flight; called again, it goes on, and ends with
    the same numbers. More models, samples or prompts can be asked for later in the same folder.

    Args:
        models: Training runs, LoRAs, pipelines; see `open_model`.
        out: The evaluation's folder; `evaluations/<names>` if left out.
        subject: Whose photos, where the models do not say; as `open_model` takes it.
        references: Folder of photos of the subject that were not trained on; images are compared
            with those then, and not with the ones that were.
        suites: Benchmarks, by name or file; what is usual for model and subject if left out.
        samples: Images of each prompt; DreamBench has 4.
        class_samples: Images of other members of the class, over all the prompts that ask for
            it; 8 times `samples` if left out.
        seed: What the noise of all images follows from.
        steps: Denoising steps.
        guidance_scale: Of all models; that of the first one's recipe if left out.
        base_model: What LoRAs were trained on, where nothing says it, or another place of it.
        structure: Encoder for DINO, a transformers name or folder; by the base model if left out.
        alignment: Encoder for CLIP-I and CLIP-T, likewise.
        lettering: Whether text fidelity is measured, where the subject has writing on it; reading
            an image takes about as long as drawing a small one.
        with_base: Whether the base model is measured too, as the row where things start.
        snapshots: Whether each snapshot of a run is a model of its own.
        device: Where to compute; the best there is if left out.
        batch_size: Images at a time; as many as memory suffices for if left out.
        limit: Only the first so many prompts of each benchmark, for a quick look.
        fresh: Delete what an earlier evaluation made in the folder.
        reporter: Where progress goes; standard error by default.

    Returns:
        What was found; `report.html` and `evaluation.json` lie in its folder.

    Raises:
        KeyboardInterrupt: Somebody asked to stop; the images drawn so far are kept.
        RegforgeError: Something the user can put right; the message says what.
    """
    from regforge.evaluation.encoders import default_encoders
    from regforge.evaluation.measuring import open_gauge

    _check_numbers(samples=samples, class_samples=class_samples, limit=limit)
    _check_seed(seed)
    opened = open_all(models, base=base_model, subject=subject, snapshots=snapshots)
    guidance, notes = guidance_for(opened, guidance_scale)
    reporter = reporter or Reporter()
    artist = Artist(device, None, steps, guidance, batch_size, reporter=reporter)
    per_class = _CLASS_SAMPLES * samples if class_samples is None else class_samples
    rows = [
        row_of(
            model,
            noun,
            questions_for(model, _known_subject(model), suites, limit),
            class_questions_for(model, _known_subject(model), suites),
            artist,
            samples=samples,
            class_samples=per_class,
            seed=seed,
        )
        for model, noun in rows_of(opened, with_base=with_base)
    ]
    notes += note_on_sizes(opened, artist)
    photos = references_for(
        [(row.subject, row.model.notes) for row in rows],
        None if references is None else normal(Path(references)),
    )
    usual = default_encoders((base_of(opened[0]) or opened[0]).base)
    names = type(usual)(structure or usual.structure, alignment or usual.alignment)
    settings = settings_of(
        rows,
        samples=samples,
        class_samples=per_class,
        seed=seed,
        steps=steps,
        guidance_scale=guidance,
        limit=limit,
        encoders={"structure": names.structure, "alignment": names.alignment},
    )
    # In seconds it shows whether they can be had.
    gauge, remarks = open_gauge(names, device=device, lettering=lettering)
    folder = EvaluationFolder(Path(out) if out is not None else default_folder(models))
    with folder.locked(), artist:
        compared_with = "the photos trained on" if references is None else str(references)
        going_on = folder.claim(
            {row.model.name: row.model.where or row.model.base for row in rows},
            {**settings, "references": compared_with},
            fresh=fresh,
            unchanged=[row.model.name for row in rows if (folder.images / row.folder).is_dir()],
        )
        notes += remarks
        session = _Session(folder, rows, photos, artist, gauge, settings, reporter, notes=notes)
        if going_on:
            reporter.say(f"Going on with {folder.path}")
        return session.run()


# --------------------------------------------------------------------------------------- session


@dataclass
class _Session:
    """One call of `evaluate`; what is settled, and what is done with it."""

    folder: EvaluationFolder
    rows: Sequence[Row]
    photos: Mapping[str, References]
    artist: Artist
    gauge: Gauge
    settings: Mapping[str, Any]
    reporter: Reporter
    notes: list[str] = field(default_factory=list)
    drawing: float = 0.0
    measuring: float = 0.0
    _loading: float = 0.0  # until the first image: the model was loaded in it

    def run(self) -> Evaluation:
        gauge = self.gauge
        known = self._learn(gauge)
        self._announce()
        start = time.monotonic()
        results = [self._evaluated(row, gauge, known[name_of(row.subject)]) for row in self.rows]
        self.measuring = time.monotonic() - start - self.drawing
        self.artist.close()
        evaluation = Evaluation(
            folder=self.folder.path,
            settings={
                **self.settings,
                "encoders": gauge.names,
            },
            references=self._copied_references(),
            held_out=all(each.held_out for each in self.photos.values()),
            ceiling={name: each.ceiling for name, each in known.items()},
            results=results,
            comparisons=compare(worth_comparing(results), seed=int(self.settings["seed"])),
            notes=self._all_notes(gauge, known),
        )
        for those in evaluation.by_subject().values():
            evaluation.notes += best_steps(those)
        self._write(evaluation)
        self.reporter.say(
            f"Drawing took {duration(self.drawing)}, measuring {duration(self.measuring)}."
        )
        return evaluation

    def _learn(self, gauge: Gauge) -> dict[str, Known]:
        seed = int(self.settings["seed"])
        return {name: gauge.learn(each, seed=seed) for name, each in self.photos.items()}

    def _announce(self) -> None:
        """Say what is to come, and about how long it takes."""
        missing = sum(len(self._missing(row)) for row in self.rows)
        total = sum(len(row.asked) for row in self.rows)
        each = len(self.rows[-1].asked)
        models = f"{len(self.rows)} models" if len(self.rows) > 1 else "one model"
        text = f"{total:,} images of {models}, {each:,} of each"
        if missing < total:
            text += f"; {total - missing:,} are there already"
        seconds = self._seconds_each()
        if missing and seconds is not None:
            text += f"; drawing takes about {duration(missing * seconds)}"
        self.reporter.say(f"{text}.")

    def _evaluated(self, row: Row, gauge: Gauge, known: Known) -> ModelResult:
        """Draw and measure one model."""
        total, before = len(row.asked), len(self._missing(row))
        spent = self.drawing
        folder = self.folder.images / row.folder
        with (
            self.reporter.task(row.model.name, total, "images") as task,
            self.artist.using(row.model) as pen,
        ):
            drawn = pen.draw([each.wanted for each in row.asked], folder=folder, task=task)
            measured = gauge.measure(row, self._timed(row, drawn), known)
        if before >= _ENOUGH:
            self._remember_speed(before, self.drawing - spent - self._loading)
        return summarize(row.model, measured, seed=int(self.settings["seed"]))

    def _timed(self, row: Row, drawn: Iterator[Drawn]) -> Iterator[Drawn]:
        """The same images; how long they took is counted, and notes on them are kept.

        What the artist notes while it draws would else be lost to a session that goes on.
        """
        noted = 0
        start = time.monotonic()
        for number, each in enumerate(drawn):
            spent = time.monotonic() - start
            self.drawing += spent
            if number == 0:
                self._loading = spent
            if len(self.artist.notes) > noted:
                noted = len(self.artist.notes)
                self._keep_notes(row)
            yield each
            start = time.monotonic()

    def _keep_notes(self, row: Row) -> None:
        kept = dict(self.folder.state().get("notes", {}))
        kept[row.folder] = list(dict.fromkeys([*kept.get(row.folder, ()), *self.artist.notes]))
        self.folder.remember(notes=kept)

    def _missing(self, row: Row) -> list[str]:
        folder = self.folder.images / row.folder
        files = (str(each.wanted.file) for each in row.asked)
        return [file for file in files if not (folder / file).is_file()]

    # ------------------------------------------------------------------------------------- speed

    def _seconds_each(self) -> float | None:
        """What an image took on this machine the last time; None if nobody knows."""
        from regforge.forge.speeds import seconds_per_image

        return seconds_per_image(self._as_render())

    def _remember_speed(self, images: int, seconds: float) -> None:
        from regforge.forge.speeds import remember

        remember(self._as_render(), images, seconds)

    def _as_render(self) -> Any:
        from regforge.recipe import Render

        return Render(
            model=self.rows[0].model.base, steps=self.artist.steps, device=self.artist.device
        )

    # ----------------------------------------------------------------------------------- results

    def _copied_references(self) -> dict[str, list[str]]:
        copied = {}
        for number, (name, each) in enumerate(self.photos.items()):
            files = each.copy_small(self.folder.references / f"{number:02d}")
            copied[name] = [path.relative_to(self.folder.path).as_posix() for path in files]
        return copied

    def _all_notes(self, gauge: Gauge, known: Mapping[str, Known]) -> list[str]:
        kept = self.folder.state().get("notes", {})
        return list(
            dict.fromkeys(
                [
                    *_on_the_protocol(self.settings, self.photos.values()),
                    *self.notes,
                    *(note for row in self.rows for note in row.model.notes),
                    *(note for each in self.photos.values() for note in each.notes),
                    *gauge.notes,
                    *(note for each in known.values() for note in each.notes),
                    *(note for row in self.rows for note in kept.get(row.folder, ())),
                ]
            )
        )

    def _write(self, evaluation: Evaluation) -> None:
        from regforge.evaluation.page import write_page
        from regforge.evaluation.plots import identity_against_alignment, save

        evaluation.save(self.folder.path / FILE)
        write_page(evaluation, self.folder.path)
        with suppress(EvaluationError):  # without matplotlib; the page says so
            for number, (subject, results) in enumerate(evaluation.by_subject().items()):
                name = "summary.png" if number == 0 else f"summary-{number + 1}.png"
                figure = identity_against_alignment(
                    {each.model.name: each.scores for each in results},
                    ceiling=evaluation.ceiling.get(subject),
                    title=subject,
                )
                save(figure, self.folder.path / name)


def _known_subject(model: PersonalizedModel) -> Subject:
    assert model.subject is not None  # `open_all` has refused others
    return model.subject


def _on_the_protocol(settings: Mapping[str, Any], photos: Iterable[References]) -> Iterator[str]:
    """In which way this is not DreamBench's protocol."""
    if settings["limit"] is not None:
        most = settings["limit"]
        some = (
            "prompt of each benchmark was"
            if most == 1
            else f"{most} prompts of each benchmark were"
        )
        yield f"A quick look: only the first {some} asked. Leave out --limit for all."
    if settings["samples"] != SAMPLES:
        count = "1 image" if settings["samples"] == 1 else f"{settings['samples']} images"
        yield f"{count} of each prompt; DreamBench draws {SAMPLES}."
    if not any(each.held_out for each in photos):
        yield (
            "Images are compared with the photos that were trained on, as in DreamBench; a model "
            "that copies them scores high. --references compares with photos it has not seen."
        )


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and not 1 <= value <= _MOST:
            raise EvaluationError(f"{name} is {value:,}; it can be 1 to {_MOST:,}.")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise EvaluationError(f"The seed is {seed}; it must be 0 or more.")
