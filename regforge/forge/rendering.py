"""The images stage of a run: every prompt becomes an accepted image, or is refused with a reason.

Works shard by shard: draw what is missing, judge it in the order of the index, draw what was
refused again with the next seed, and store the shard. A shard that is stored is never drawn
again, and everything here depends only on what is stored, so that a run that was killed anywhere
ends with the same bytes as one that was not. Where many workers draw, they have begun with the
shards that follow; the batches are the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from regforge.dataset.decisions import FILE, DecisionsError, Review
from regforge.dataset.store import SHARD_SIZE, Rejection, Store, is_made_from, thumbnail
from regforge.errors import RegforgeError
from regforge.files import write_atomically
from regforge.forge.prompting import PromptStage
from regforge.images.curation import BLANK, Curator, Verdict
from regforge.images.elsewhere import ImagesMissing, hand_out, take_back
from regforge.journal import Journal, Reporter, Task
from regforge.recipe import Recipe
from regforge.records import ImageJob, ImageRow, Prompt, file_suffix, image_jobs
from regforge.runs import RunFolder
from regforge.words import still_said

if TYPE_CHECKING:
    from regforge.images import Engine
    from regforge.images.renderer import Renderer
    from regforge.images.staging import Staging


_MOST_SPARE = 1.0
"""At most so many further prompts, relative to those asked for, make up for refused images."""
_FEWEST_BLANK = 4
"""Images of which none must show anything before the model, and not a caption, is at fault."""


class TooManyRefused(RegforgeError):
    """So many images were refused that the dataset does not fill."""


class NothingDrawn(RegforgeError):
    """The model draws black images, or images of a single colour, and nothing else."""


@dataclass
class _Stored:
    """What an earlier session stored of some jobs, and of others in the same shard.

    Images that were rejected since, or whose caption was edited, are in neither. `relabelled` says
    that what is noted about an image has changed.
    """

    rows: list[ImageRow] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    other_rows: list[ImageRow] = field(default_factory=list)
    other_rejected: list[Rejection] = field(default_factory=list)
    relabelled: bool = False


_Refused = list[tuple[ImageJob, Verdict]]
"""The attempts of one job that were not good enough."""


@dataclass
class ImageStage:
    """Makes the images of one run."""

    recipe: Recipe
    folder: RunFolder
    store: Store
    curator: Curator
    journal: Journal
    reporter: Reporter
    engine: Engine = "local"
    workers: int | None = None
    _opened: tuple[Renderer, Staging] | None = None
    _complete: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By shard: how many jobs it was completed for, and how many images were accepted."""
    _prompts: Sequence[Prompt] = ()
    _missing: list[ImagesMissing] = field(default_factory=list)
    _expected: int = 0
    """The last shard that was spoken of to the renderer."""

    def run(self, prompts: PromptStage, count: int) -> None:
        """Make all images of the first `count` prompts, and of as many more as were refused.

        Raises:
            TooManyRefused: Even twice as many prompts did not give enough images.
            RegforgeError: The model cannot be loaded, or the disk is full.
        """
        per_prompt = self.recipe.render.images_per_prompt
        wanted, planned = count * per_prompt, count
        most = count + max(16, math.ceil(count * _MOST_SPARE))
        try:
            with self.reporter.task("images", wanted, "images") as task:
                while (accepted := self._make(prompts.prompts(planned), task)) < wanted:
                    if planned >= most:
                        raise self._too_many_refused(accepted, wanted)
                    spare = math.ceil((wanted - accepted) / per_prompt)
                    spare = min(spare, most - planned)
                    planned += spare
                    task.extend(spare * per_prompt)
            take_back(self.folder.path)
            if self._opened is not None:
                self._opened[1].discard()  # of an earlier session that was asked for more
        finally:
            if self._opened is not None:
                renderer, staging = self._opened
                staging.close()
                renderer.close()

    def _make(self, prompts: Sequence[Prompt], task: Task) -> int:
        """Complete the shards of these prompts; returns how many images were accepted."""
        self._prompts = prompts
        accepted = 0
        for number in range(self._shards):
            try:
                accepted += self._shard(number, self._jobs(number), task)
            except ImagesMissing as error:  # all shards are looked at, for all that is missing
                self._missing.append(error)
        if self._missing:
            raise hand_out(self.folder.path, self.recipe.render, self._missing)
        return accepted

    @property
    def _shards(self) -> int:
        return math.ceil(len(self._prompts) * self.recipe.render.images_per_prompt / SHARD_SIZE)

    def _jobs(self, shard: int) -> list[ImageJob]:
        per_prompt, start = self.recipe.render.images_per_prompt, shard * SHARD_SIZE
        end = min(start + SHARD_SIZE, len(self._prompts) * per_prompt)
        some = [self._prompts[at] for at in range(start // per_prompt, -(-end // per_prompt))]
        jobs = image_jobs(some, self.store.recipe_digest, per_prompt)
        return [self._reviewed(job) for job in jobs if start <= job.index < end]

    @cached_property
    def _review(self) -> Review:
        """What people decided about the images.

        Raises:
            DecisionsError: It cannot be read, or there is a caption that no image can be drawn of.
        """
        from regforge.prompts.tokens import token_budget
        from regforge.prompts.writing import caption_problem

        review, recipe = Review.of(self.folder.path), self.recipe
        if review.captions:
            budget = token_budget(recipe.render, recipe.prompts.max_tokens)
            for each in review.captions.values():
                if problem := caption_problem(each.text, recipe.subject.identifier, budget):
                    raise DecisionsError(
                        f"{self.folder.path / FILE}, decision {each.n}: the caption {problem}.",
                        hint="Change the line, or delete it.",
                    )
        return review

    def _reviewed(self, job: ImageJob) -> ImageJob:
        """The image as people want it: of their caption, and none that they rejected."""
        text = self._review.asked_text(job.id)
        if text is not None:
            slots = still_said(job.prompt.slots, text)
            job = replace(job, prompt=replace(job.prompt, text=text, slots=slots))
        return self._review.first_attempt(job, self.store.recipe_digest)

    # ------------------------------------------------------------------------------ one shard

    def _shard(self, number: int, jobs: Sequence[ImageJob], task: Task) -> int:
        """Complete a shard; returns how many of its images were accepted."""
        known = self._complete.get(number)
        if known is not None and known[0] == len(jobs):
            return known[1]
        stored = self._stored(number, jobs)
        self.curator.admit_known(stored.rows)
        if known is None:
            task.skip(len(stored.rows) + len(stored.rejected))
        finished = {row.id for row in stored.rows} | {each.id for each in stored.rejected}
        todo = [job for job in jobs if job.id not in finished]
        rows, rejected = stored.rows, stored.rejected
        if todo:
            self._look_ahead(number)
            drawn, refused = self._draw(todo, task)
            rows, rejected = [*rows, *drawn], [*rejected, *refused]
        if self._missing:  # it was judged without what is to come before it
            return len(rows)
        if todo or stored.relabelled:
            self.store.write(
                number, [*rows, *stored.other_rows], [*rejected, *stored.other_rejected]
            )
        if todo:
            self._open()[1].discard(jobs)
        self._complete[number] = len(jobs), len(rows)
        return len(rows)

    def _look_ahead(self, number: int) -> None:
        """Have a renderer with many workers begin with the shards that follow.

        A shard that is partly there waits for its turn: what is left of it is not known before.
        """
        from regforge.images.staging import expect

        renderer, staging = self._open()
        last = min(self._shards - 1, number + math.ceil(renderer.ahead / SHARD_SIZE))
        for later in range(max(number, self._expected) + 1, last + 1):
            self._expected = later
            if not self.store.has(later):
                expect(staging, renderer, self._jobs(later))

    def _stored(self, number: int, jobs: Sequence[ImageJob]) -> _Stored:
        stored = _Stored()
        if not self.store.has(number):
            return stored
        asked = {job.id: job for job in jobs}
        for row in self.store.rows(number):
            key = row.id, row.image_digest
            drawn = replace(row, text=self._review.drawn_text(key, row.text))
            if row.id not in asked:
                stored.other_rows.append(row)
            elif self._review.goes(key):
                suffix = f"{row.image_digest[:8]}.{file_suffix(row.image)}"
                write_atomically(self.folder.reviewed / f"{row.id}.{suffix}", row.image)
            elif is_made_from(drawn, asked[row.id]):
                prompt = asked[row.id].prompt
                now = replace(  # what is noted about the caption may have been edited
                    row,
                    text=prompt.text,
                    slots={name: prompt.slots.get(name) for name in row.slots},
                    prompt_set=prompt.prompt_set,
                    template=prompt.template,
                    reference=prompt.reference,
                )
                now = self._review.corrected(now)
                stored.relabelled |= now != row
                stored.rows.append(now)
        for each in self.store.rejected(number):
            if each.id not in asked:
                stored.other_rejected.append(each)
            elif each.text == asked[each.id].prompt.text:
                stored.rejected.append(each)
        return stored

    def _draw(self, jobs: Sequence[ImageJob], task: Task) -> tuple[list[ImageRow], list[Rejection]]:
        """Render and judge, and do so again with other seeds for what was refused.

        Each image is compared with those of lower index only, whatever was drawn first, so that
        what comes out does not depend on how many images were asked for.
        """
        attempts = {job.id: [job] for job in jobs}
        before = self.curator.accepted
        first = self._first(jobs)
        self._render(first, task)
        self._refuse_blank(first, task)
        if len(first) < len(jobs):
            drawn = {job.id for job in first}
            self._render([job for job in jobs if job.id not in drawn], task)
        while True:
            judged = [self._judge(attempts[job.id]) for job in jobs]
            wanted = [
                refused[-1][0].again(self.store.recipe_digest)
                for refused, row in judged
                if row is None and len(refused) < self._most_attempts
            ]
            if not wanted:
                break
            task.extend(len(wanted))
            try:
                self._render(wanted, task)
            except ImagesMissing as error:
                last = (refused[-1] for refused, _ in judged if refused)
                why = {job.id: "; ".join(verdict.reasons) for job, verdict in last}
                error.reasons = why | error.reasons
                raise
            for job in wanted:
                attempts[job.id].append(job)
            self.curator.forget(before)  # a new image may now be in the way of a later one
        for refused, _ in judged if not self._missing else ():
            for job, verdict in refused:
                self.journal.failure("images", job.id, "; ".join(verdict.reasons))
        return (
            [row for _, row in judged if row is not None],
            [self._rejection(refused) for refused, row in judged if row is None],
        )

    def _first(self, jobs: Sequence[ImageJob]) -> list[ImageJob]:
        """The first whole batches that hold a few images; of files all jobs."""
        from regforge.images.renderer import batches

        if self.recipe.render.renderer == "files":
            return list(jobs)
        first: list[ImageJob] = []
        renderer = self._open()[0]
        for batch in batches(jobs, renderer.batch_size, renderer.identity):
            if len(first) >= _FEWEST_BLANK:
                break
            first += batch
        return first

    def _refuse_blank(self, jobs: Sequence[ImageJob], task: Task) -> None:
        """Draw images of which none shows anything again, and stop if that never changes.

        Raises:
            NothingDrawn: All attempts of all of them are blank; a few more would be as well.
        """
        if len(jobs) < _FEWEST_BLANK and self.curator.accepted > 0:
            return
        staging = self._open()[1]
        attempts, reasons = list(jobs), set[str]()
        for number in range(1, self._most_attempts + 1):
            for job in attempts:
                staged = staging.read(job)
                reason = self.curator.blank(
                    staged.image, nsfw=staged.nsfw, not_finite=staged.not_finite
                )
                if reason is None:
                    return
                reasons.add(reason)
            if number < self._most_attempts:
                attempts = [job.again(self.store.recipe_digest) for job in attempts]
                task.extend(len(attempts))
                self._render(attempts, task)
        staging.discard(jobs)  # a service may be well again the next time
        raise self._nothing_drawn(len(jobs), reasons)

    @property
    def _most_attempts(self) -> int:
        return self.recipe.render.max_attempts

    def _render(self, jobs: Sequence[ImageJob], task: Task) -> None:
        """Draw into the staging area what is not there yet."""
        from regforge.images.renderer import remember_speed
        from regforge.images.staging import render_into

        renderer, staging = self._open()
        task.restart()
        there = {job.id for job in jobs} - {job.id for job in staging.missing(jobs)}
        task.skip(len(there - staging.early))  # those were counted when they were drawn
        staging.early -= there
        start = time.monotonic()
        drawn = render_into(staging, renderer, jobs, task)
        self.folder.remember(batch_size=renderer.batch_size)
        if drawn:
            seconds = round(time.monotonic() - start, 3)
            batch_size = renderer.batch_size
            self.journal.event("rendered", images=drawn, seconds=seconds, batch_size=batch_size)
            if not renderer.ahead and self.recipe.render.renderer != "files":  # of one machine
                remember_speed(self.recipe.render, drawn, seconds)

    def _judge(self, attempts: Sequence[ImageJob]) -> tuple[_Refused, ImageRow | None]:
        """The attempts that were refused, and the row of the first one that is good enough."""
        staging = self._open()[1]
        refused: _Refused = []
        for job in attempts:
            staged = staging.read(job)
            verdict = self.curator.judge(
                staged.image,
                id=job.id,
                caption=job.prompt.text,
                nsfw=staged.nsfw,
                not_finite=staged.not_finite,
            )
            if not verdict.reasons:
                self.curator.accept(job.id, verdict)
                return refused, self._row(job, staged.image, verdict)
            refused.append((job, verdict))
        return refused, None

    def _rejection(self, refused: _Refused) -> Rejection:
        job, verdict = refused[-1]
        return Rejection(
            id=job.id,
            index=job.index,
            text=job.prompt.text,
            reasons=verdict.reasons,
            attempts=len(refused),
            thumbnail=thumbnail(self._open()[1].read(job).image),
        )

    def _row(self, job: ImageJob, image: bytes, verdict: Verdict) -> ImageRow:
        from regforge.images.renderer import is_sent, sampling
        from regforge.images.staging import size_of

        render, identity = self.recipe.render, self._open()[0].identity
        width, height = size_of(image)
        return ImageRow(
            image=image,
            text=job.prompt.text,
            class_noun=job.prompt.class_noun,
            kind=job.prompt.kind,
            prompt_set=job.prompt.prompt_set,
            slots=job.prompt.slots,
            negative_prompt=render.negative_for(job.prompt.prompt_set),
            seed=job.seed if is_sent(render, "seed", identity) else None,
            width=width,
            height=height,
            model=identity.model,
            model_revision=identity.revision,
            scheduler=sampling(identity, render)
            if is_sent(render, "scheduler", identity)
            else None,
            steps=render.steps if is_sent(render, "steps", identity) else None,
            guidance_scale=render.guidance_scale
            if is_sent(render, "guidance_scale", identity)
            else None,
            language_model=job.prompt.language_model,
            template=job.prompt.template,
            recipe_digest=self.store.recipe_digest,
            image_digest=verdict.image_digest,
            perceptual_hash=verdict.perceptual_hash,
            scores=verdict.scores,
            id=job.id,
            reference=job.prompt.reference,
            lora=identity.loras_as_json,
        )

    # ---------------------------------------------------------------------- the model, when needed

    def _open(self) -> tuple[Renderer, Staging]:
        """The renderer and the staging area; a run whose shards are all stored loads no model."""
        if self._opened is None:
            from regforge.images import open_renderer
            from regforge.images.staging import Staging

            renderer = open_renderer(
                self.recipe.render,
                journal=self.journal,
                reporter=self.reporter,
                batch_size=self.folder.state().get("batch_size"),
                engine=self.engine,
                workers=self.workers,
            )
            self._refuse_another(renderer)
            staging = Staging(self.folder.staging, self.recipe.render, renderer.identity)
            self._opened = renderer, staging
        return self._opened

    def _refuse_another(self, renderer: Renderer) -> None:
        """See that a web UI has what it had loaded in earlier sessions; no recipe names all of it.

        Raises:
            RenderSettingError: It would draw with something else.
        """
        from regforge.images.renderer import RenderSettingError

        if self.recipe.render.renderer != "a1111":
            return
        now = [renderer.identity.model, renderer.identity.revision]
        before = self.folder.state().get("drawn_with", now)
        if before != now:
            renderer.close()
            raise RenderSettingError(
                f"The images of {self.folder.path} were drawn with {before[0]} ({before[1]}), and "
                f"the web UI has {now[0]} ({now[1]}).",
                hint="Load the same there, or begin another run with --out.",
            )
        self.folder.remember(drawn_with=now)

    def _nothing_drawn(self, images: int, reasons: set[str]) -> NothingDrawn:
        what = " or ".join(reason for reason in BLANK if reason in reasons)
        self.journal.failure("images", "the first images", what)
        return NothingDrawn(
            f"{self.recipe.render.model} draws nothing: each of the first {images} images, in each "
            f"of {self._most_attempts} attempts: {what}.",
            hint=self._about_blank(),
        )

    def _about_blank(self) -> str:
        """What to do when images show nothing."""
        render, dtype = self.recipe.render, self._open()[0].identity.dtype
        if render.renderer != "local":
            return (
                "Ask the service for one image of such a caption: it may need another model, or "
                "send a placeholder in place of what it will not draw."
            )
        hint = "Numbers that overflow come out black. "
        if dtype != "float32":
            hint += f"Set render.dtype: float32 (it was {dtype}), or another VAE with render.vae. "
        hint += "Or look at render.steps, render.guidance_scale and render.scheduler"
        return hint + (", and at the scale of render.lora." if render.lora else ".")

    def _too_many_refused(self, accepted: int, wanted: int) -> TooManyRefused:
        rejected = list(self.store.iter_rejected())
        blank = sum(any(reason in BLANK for reason in each.reasons) for each in rejected)
        often = (
            "Often it helps to give the slots more phrases, to raise render.max_attempts, or to "
            "lower curate.max_duplicate_distance."
        )
        return TooManyRefused(
            f"Only {accepted} of {wanted} images were good enough, after twice as many prompts"
            + (f"; {blank} of {len(rejected)} showed nothing." if blank else "."),
            hint=f"The reasons are in {self.folder.report} and {self.folder.path}/ledger.jsonl. "
            + (self._about_blank() if blank > len(rejected) / 2 else often),
        )
