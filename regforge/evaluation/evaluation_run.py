"""An evaluation from models to a page: draws, scores, sums up, writes.

    OUT/images/<model>-<digest>/...   what was drawn; the digest is that of weights and settings
    OUT/references/<subject>/...      small copies of the photos that images are compared with
    OUT/evaluation.json               all scores
    OUT/report.html  summary.png      for people
    OUT/state.json                    which models and settings the folder belongs to

Images of other weights or settings have another digest, so they are never taken for these. More
models, more samples and more prompts are the same evaluation, made larger.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from regforge.evaluation.drawing import is_made_from
from regforge.evaluation.planning import (
    SAMPLES,
    EvaluationSettings,
    ModelPlan,
    Plan,
    plan_evaluation,
)
from regforge.evaluation.results import (
    FILE,
    Evaluation,
    ModelResult,
    best_steps,
    compare,
    summarize,
    worth_comparing,
)
from regforge.evaluation.scoring import Scorer, SubjectFeatures
from regforge.evaluation.suites import (
    EvaluationError,
    PersonalizedModel,
    absolute,
    home_of,
)
from regforge.evaluation.wording import shown
from regforge.images import Engine, require_engine
from regforge.images.renderer import remember_speed, seconds_per_image
from regforge.journal import Reporter
from regforge.recipe import Render
from regforge.recipe.named_files import LORA_NAME
from regforge.runs import OwnedFolder
from regforge.words import counted, duration, listed

_Model = str | os.PathLike[str] | PersonalizedModel
_ENOUGH = 40  # images that say how long one takes, though the first batch is not counted
_MOST_NAME = 60  # letters of a folder's name
_GROWING = ("samples", "class_samples", "lift_samples", "limit")
"""Settings of which more may be wanted later; for `limit`, none at all is most."""


def evaluate(
    models: _Model | Sequence[_Model],
    settings: EvaluationSettings | None = None,
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    engine: Engine = "local",
    workers: int | None = None,
    reporter: Reporter | None = None,
    **more: Any,
) -> Evaluation:
    """Draw the same prompts with the same seeds from each model, and score the images.

    Killed at any instant, it loses the batch in flight; called again, it goes on, and ends with
    the same numbers. More models, samples or prompts can be added later in the same folder.

    Args:
        models: One or more: training runs, or what `train` returned, LoRAs, pipelines; see
            `open_model`.
        settings: What is drawn and measured.
        out: The evaluation's folder; `evaluations/<names>` by default.
        fresh: Delete what an earlier evaluation made in the folder.
        engine: Where images are drawn: in this process, or by `workers` of a Ray cluster, as for
            `regforge.run`; they are measured here.
        workers: One for each GPU if left out.
        reporter: Where progress goes; standard error by default.
        more: Settings by name, such as `samples=1`; they go before those of `settings`.

    Raises:
        KeyboardInterrupt: The images drawn so far are kept.
        RegforgeError: Something the user can put right; the message says what.
    """
    settings = replace(settings or EvaluationSettings(), **more)
    if isinstance(models, str | os.PathLike | PersonalizedModel):
        models = [models]
    given = [m if isinstance(m, PersonalizedModel) else os.fspath(m) for m in models]
    reporter = reporter or Reporter()
    plan = plan_evaluation(given, settings, reporter)
    require_engine(Render(device=settings.device), engine, workers)
    # Loaded before anything is drawn: an encoder that cannot be had costs seconds.
    scorer = Scorer.open(
        **plan.settings["encoders"],
        device=settings.device,
        text_fidelity=settings.text_fidelity,
    )
    folder = EvaluationFolder(Path(out) if out is not None else default_folder(given))
    models_now = {each.model.name: each.model.where or each.model.base for each in plan.models}
    compared_with = str(settings.references or "the photos trained on")
    with folder.locked(), plan.pool:
        goes_on = folder.claim(
            models_now,
            {**plan.settings, "references": compared_with},
            fresh=fresh,
            unchanged={e.model.name for e in plan.models if (folder.images / e.folder).is_dir()},
        )
        if goes_on:
            reporter.say(f"Going on with {folder.path}")
        return _Session(folder, plan, scorer, reporter).run(engine, workers)


# --------------------------------------------------------------------------------------- session


class _Session:
    """One call of `evaluate`, once everything is settled."""

    def __init__(
        self, folder: EvaluationFolder, plan: Plan, scorer: Scorer, reporter: Reporter
    ) -> None:
        self._folder, self._plan = folder, plan
        self._scorer, self._reporter = scorer, reporter
        self._seed = int(plan.settings["seed"])
        base, pool = plan.models[0].model.base, plan.pool
        self._render = Render(model=base, steps=pool.steps, device=pool.device)
        self._drawing = 0.0  # seconds
        self._loading = 0.0  # until the first image of a model

    def run(self, engine: Engine, workers: int | None) -> Evaluation:
        plan, scorer = self._plan, self._scorer
        features = {
            name: scorer.learn(photos, seed=self._seed) for name, photos in plan.references.items()
        }
        self._announce()
        start = time.monotonic()
        if engine == "ray":
            from regforge.evaluation.cluster import draw_on_cluster

            draw_on_cluster(plan, self._folder.images, workers)
            self._drawing = time.monotonic() - start
        results = [self._evaluated(each, features[each.subject.name]) for each in plan.models]
        scoring = time.monotonic() - start - self._drawing
        plan.pool.close()
        references = {}
        for number, (name, photos) in enumerate(plan.references.items()):
            copies = photos.copy_small(self._folder.references / f"{number:02d}")
            references[name] = [file.relative_to(self._folder.path).as_posix() for file in copies]
        evaluation = Evaluation(
            folder=self._folder.path,
            settings={**plan.settings, "encoders": scorer.names},
            references=references,
            held_out=all(each.held_out for each in plan.references.values()),
            ceiling={name: each.ceiling for name, each in features.items()},
            results=results,
            comparisons=compare(worth_comparing(results), seed=self._seed),
            notes=self._notes(features),
        )
        for those in evaluation.by_subject().values():
            evaluation.notes += best_steps(those)
        self._write(evaluation)
        self._reporter.say(
            f"Drawing took {duration(self._drawing)}, measuring {duration(scoring)}."
        )
        return evaluation

    def _announce(self) -> None:
        """Say what is to come, and about how long it takes where this machine has drawn before."""
        plans = self._plan.models
        missing = sum(map(self._missing, plans))
        total = sum(len(each.drawn) for each in plans)
        models = f"{len(plans)} models" if len(plans) > 1 else "one model"
        text = f"{total:,} images of {models}, {len(plans[-1].drawn):,} of each"
        if missing < total:
            text += f"; {total - missing:,} are there already"
        seconds = seconds_per_image(self._render)
        if missing and seconds is not None:
            text += f"; drawing takes about {duration(missing * seconds)}"
        self._reporter.say(f"{text}.")

    def _evaluated(self, plan: ModelPlan, features: SubjectFeatures) -> ModelResult:
        """Draw and score one model."""
        missing, before = self._missing(plan), self._drawing
        folder = self._folder.images / plan.folder
        with (
            self._reporter.task(plan.model.name, len(plan.drawn), "images") as task,
            self._plan.pool.use(plan.model) as loaded,
        ):
            drawn = loaded.draw(plan.drawn, folder=folder, task=task)
            scored = self._scorer.score(plan, self._timed(plan, drawn), features)
        if missing >= _ENOUGH:
            remember_speed(self._render, missing, self._drawing - before - self._loading)
        return summarize(plan.model, scored, seed=self._seed)

    def _timed(self, plan: ModelPlan, drawn: Iterator[Image.Image]) -> Iterator[Image.Image]:
        """The same images; how long they took is counted, and notes on them are kept.

        What is noted while drawing would else be lost to a session that goes on.
        """
        notes, noted = self._plan.pool.notes, 0
        start = time.monotonic()
        for number, image in enumerate(drawn):
            spent = time.monotonic() - start
            self._drawing += spent
            if number == 0:
                self._loading = spent
            if len(notes) > noted:
                noted = len(notes)
                kept = dict(self._folder.state().get("notes", {}))
                kept[plan.folder] = list(dict.fromkeys([*kept.get(plan.folder, ()), *notes]))
                self._folder.remember(notes=kept)
            yield image
            start = time.monotonic()

    def _missing(self, plan: ModelPlan) -> int:
        folder = self._folder.images / plan.folder
        return sum(not (folder / str(each.file)).is_file() for each in plan.drawn)

    def _notes(self, features: Mapping[str, SubjectFeatures]) -> list[str]:
        plan = self._plan
        kept = self._folder.state().get("notes", {})
        notes = [
            *self._differences_from_dreambench(),
            *plan.notes,
            *self._without_base(),
            *self._scorer.lacks,
            *(note for each in plan.models for note in each.model.notes),
            *(note for each in plan.references.values() for note in each.notes),
            *self._scorer.notes,
            *(note for each in features.values() for note in each.notes),
            *(note for each in plan.models for note in kept.get(each.folder, ())),
        ]
        return list(dict.fromkeys(notes))

    def _differences_from_dreambench(self) -> Iterator[str]:
        limit, samples = (self._plan.settings[key] for key in ("limit", "samples"))
        if limit is not None:
            prompts = (
                "prompt of each benchmark was"
                if limit == 1
                else (f"{limit} prompts of each benchmark were")
            )
            yield f"A quick look: only the first {prompts} asked. Leave out --limit for all."
        if samples != SAMPLES:
            yield f"{counted(samples, 'image')} of each prompt; DreamBench draws {SAMPLES}."
        if not any(each.held_out for each in self._plan.references.values()):
            yield (
                "Images are compared with the photos that were trained on, as in DreamBench; a "
                "model that copies them scores high. --references compares with photos it has not "
                "seen."
            )

    def _without_base(self) -> Iterator[str]:
        if all(each.model.steps != 0 for each in self._plan.models):
            yield (
                "Class closeness, class diversity and PRES over base were not measured: they "
                "compare with the base model's images, and it is not among the models."
            )

    def _write(self, evaluation: Evaluation) -> None:
        from regforge.evaluation.page import write_page
        from regforge.evaluation.plots import identity_against_alignment, save

        evaluation.save(self._folder.path / FILE)
        write_page(evaluation, self._folder.path)
        with suppress(EvaluationError):  # without matplotlib; the page says so
            for number, (subject, results) in enumerate(evaluation.by_subject().items()):
                name = "summary.png" if number == 0 else f"summary-{number + 1}.png"
                figure = identity_against_alignment(
                    {each.model.name: each.scores for each in results},
                    ceiling=evaluation.ceiling.get(subject),
                    title=subject,
                )
                save(figure, self._folder.path / name)


# ---------------------------------------------------------------------------------------- folder


class EvaluationFolder(OwnedFolder):
    """The folder of one evaluation."""

    made = (
        *("images/*/**/*.png", "references/[0-9]*/*.webp"),
        *("report.html", "summary.png", "summary-*.png", "evaluation.json"),
    )

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.images = self.path / "images"
        self.references = self.path / "references"

    def claim(
        self,
        models: Mapping[str, str],
        settings: Mapping[str, Any],
        *,
        fresh: bool,
        unchanged: Collection[str] = (),
    ) -> bool:
        """Make the folder this evaluation's, or check that it is; whether it goes on with one.

        `models` has where each one lies, by name; those in `unchanged` have the very weights that
        images here were drawn with, though they may have moved.

        Raises:
            EvaluationError: The folder belongs to another evaluation, or to something else.
        """
        now = {"models": dict(models), "settings": dict(settings)}
        before = self.state().get("evaluation")
        if not isinstance(before, dict) or not now.keys() <= before.keys():
            before = None
            # Where only state.json is damaged, which said for whom images here were drawn, there is
            # no harm if it was for others: each says what it was drawn from.
            is_damaged = self._state.exists() and not self.state()
            drawn = self.images.glob("*/**/*.png") if is_damaged else ()
            if self.holds_others_files() and not any(is_made_from(path, {}) for path in drawn):
                raise EvaluationError(
                    f"{self.path} holds other files than an evaluation's.",
                    hint="Choose another folder with --out.",
                )
        if fresh:
            self.delete_made()
            self._write_state({"evaluation": now})
            return False
        if before is not None and self.images.exists():  # else nothing would be lost
            problems = [
                *_other_models(before["models"], models, unchanged),
                *_other_settings(before["settings"], settings),
            ]
            if problems:
                raise EvaluationError(
                    f"{self.path} holds another evaluation: {'; '.join(problems)}.",
                    hint="Choose another folder with --out, or start this one over with --fresh "
                    "(what it made is deleted).",
                )
        self.remember(evaluation=now)
        return before is not None


def default_folder(models: Sequence[str | Path | PersonalizedModel]) -> Path:
    """`evaluations/<names>`: the folder of an evaluation by default."""
    names = [
        each.name.replace("/", "-") if isinstance(each, PersonalizedModel) else _short_name(each)
        for each in models
    ]
    name = "-".join(names)
    if len(name) > _MOST_NAME:
        name = f"{names[0][:_MOST_NAME]}-and-{len(names) - 1}-more"
    return Path("evaluations") / (name or "none")


def _short_name(where: str | Path) -> str:
    """The last part of a model's path that is a name."""
    path = Path(where)
    with suppress(OSError):  # a name that no file system takes; `open_model` says so
        path = absolute(path) if absolute(path).exists() else path
    if path.suffix == ".safetensors" and path.name != LORA_NAME:
        return path.stem
    home = home_of(path)
    is_snapshot = home.parent.name == "snapshots"
    return f"{home.parent.parent.name}-{home.name}" if is_snapshot else home.name


def _other_models(
    before: Mapping[str, str], now: Mapping[str, str], unchanged: Collection[str]
) -> Iterator[str]:
    missing = [name for name in before if name not in now]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        yield f"of {listed(before)}, and {listed(missing)} {verb} not asked for now"
    for name, where in before.items():
        if name in now and now[name] != where and name not in unchanged:
            yield f"its {name} is {where}, not {now[name]}"


def _other_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key, old in before.items():  # an earlier version may have known fewer
        new = now.get(key)
        grew = key in _GROWING and (new is None or (old is not None and new > old))
        if old != new and not grew:
            yield f"{key.replace('_', ' ')} {shown(old)}, not {shown(new)}"
