"""Captions out, images back in: for whatever draws and cannot be asked by regforge.

    <run>/to_draw/prompts.csv   id, attempt, file, caption, negative_prompt, seed, width, height,
                                refused: of each image that is missing, by index
    <run>/to_draw/prompts.txt   the captions alone, one a line, in the same order
    <run>/drawn/                where the images are put, if the recipe names no other folder

An image belongs to the row whose id (and attempt) its name begins with, as in the column `file`;
more may follow, such as `_00001_`. Images whose names have no id are taken in the order of their
names, numbers counted as numbers, if there are as many as rows. What was taken for which row is in
the log: a file counts once, and not for a caption that was edited since.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from regforge.files import MOST_IMAGE, delete, read_file, storage_errors, write_atomically
from regforge.image_files import BrokenImage, decode, plain
from regforge.images.renderer import (
    ModelIdentity,
    Pixels,
    RenderedImage,
    Renderer,
    RenderError,
    job_size,
)
from regforge.journal import Journal
from regforge.recipe.named_files import csv_rows, photos_in
from regforge.recipe.rendering import ELSEWHERE, Render
from regforge.records import ImageJob
from regforge.words import counted, from_here

_CSV, _TXT = Path("to_draw/prompts.csv"), Path("to_draw/prompts.txt")
_COLUMNS = "id attempt file caption negative_prompt seed width height refused".split()
_NAMED = re.compile(r"([0-9a-f]{12}-\d{6,})(?:\.(\d+)(?!\d))?")
_TAKEN = "image_taken"


class ImagesMissing(RenderError):
    """Images that nobody has put into the folder yet.

    Attributes:
        jobs: Those images.
        reasons: By id, why the image before was refused, or a file was not taken.
        note: What else there is to say of the folder.
    """

    def __init__(
        self,
        jobs: Sequence[ImageJob],
        reasons: Mapping[str, str],
        *,
        note: str = "",
        hint: str | None = None,
    ) -> None:
        super().__init__(f"{counted(len(jobs), 'image')} must be drawn elsewhere.", hint=hint)
        self.jobs, self.reasons, self.note = list(jobs), dict(reasons), note


class ElsewhereRenderer(Renderer):
    """A `Renderer` that finds images which somebody has put into a folder."""

    batch_size = 1

    def __init__(self, render: Render, *, journal: Journal) -> None:
        run = journal.folder or Path()
        self.identity = ModelIdentity(
            render.model,
            None,
            ELSEWHERE,
            "unknown",
            render.width or 0,
            render.height or 0,
            sent=frozenset(("scheduler",)),
        )
        self._journal = journal
        entries = (each for each in journal.events() if each.get("event") == _TAKEN)
        self._taken = {str(each.get("sha256")): str(each.get("row")) for each in entries}
        self._by_id = dict[tuple[str, int], Path]()
        self._by_row = dict[str, Path]()
        folder, unnamed = drawn_in(render, run), list[Path]()
        try:
            for path in photos_in(folder) if folder.is_dir() else ():
                if (found := _NAMED.match(path.stem)) is None:
                    unnamed.append(path)
                else:  # of several of one image the last by name: most programs count upwards
                    self._by_id[found[1], int(found[2] or 0)] = path
            self._unnamed = self._take_in_order(sorted(unnamed, key=_natural), run)
        except OSError as error:
            raise RenderError(f"{folder} cannot be read: {error.strerror}.") from error

    def _take_in_order(self, files: Sequence[Path], run: Path) -> str:
        """Give files that are named by no id to the rows that were handed out last.

        Returns:
            Why some of them are of no use; empty if none are.
        """
        new = list[Path]()
        for path in files:
            row = self._taken.get(_digest(read_file(path, MOST_IMAGE)))
            if row is None:
                new.append(path)
            else:
                self._by_row[row] = path
        rows = [
            row
            for id_, attempt, text in _handed_out(run)
            if (row := _row(id_, attempt, text)) not in self._by_row
            and (id_, attempt) not in self._by_id
        ]
        if len(new) == len(rows) or not new:
            self._by_row |= zip(rows, new, strict=False)
            return ""
        return (
            f"{counted(len(new), 'image')} there without an id in the name, "
            f"{counted(len(rows), 'image')} missing: such images are taken in their order only "
            "when there is one for each."
        )

    def render(self, jobs: Sequence[ImageJob]) -> Iterator[RenderedImage]:
        """See `Renderer.render`; an ImagesMissing names the images that are not there."""
        missing, reasons = list[ImageJob](), dict[str, str]()
        for job in jobs:
            row = _row(job.id, job.attempt, job.prompt.text)
            path = self._by_id.get((job.id, job.attempt)) or self._by_row.get(row)
            if path is None:
                missing.append(job)
                continue
            try:
                yield RenderedImage(job, self._pixels(job, row, path), nsfw=False)
            except (OSError, BrokenImage) as error:
                reason = getattr(error, "strerror", None) or str(error)
                reasons[job.id] = f"{path.name}: {reason}"
                self._journal.failure("images", job.id, reasons[job.id])
                missing.append(job)
        if missing:
            raise ImagesMissing(missing, reasons, note=self._unnamed)

    def _pixels(self, job: ImageJob, row: str, path: Path) -> Pixels:
        """What a file shows. A BrokenImage if it is not this job's, an OSError if it is gone."""
        content = read_file(path, MOST_IMAGE)
        digest = _digest(content)
        if self._taken.setdefault(digest, row) != row:
            raise BrokenImage("this file was taken for another image, or another caption")
        image = plain(decode(content))
        wanted = job_size(job, self.identity)
        if all(wanted) and image.size != wanted:
            raise BrokenImage(
                f"{image.width} x {image.height} pixels, where {wanted[0]} x {wanted[1]} are wanted"
            )
        self._journal.event(_TAKEN, image=job.id, file=path.name, sha256=digest, row=row)
        return np.asarray(image, dtype=np.uint8)

    def close(self) -> None:
        """Nothing is held."""


def drawn_in(render: Render, run: Path) -> Path:
    """The folder that drawn images are put into."""
    return render.folder or run / "drawn"


def hand_out(run: Path, render: Render, missing: Sequence[ImagesMissing]) -> ImagesMissing:
    """Write down what is to be drawn, in place of what was before, and say what to do with it."""
    jobs = [job for each in missing for job in each.jobs]
    reasons = {
        job.id: each.reasons[job.id]
        for each in missing
        for job in each.jobs
        if job.id in each.reasons
    }
    out, lines = io.StringIO(), list[str]()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(_COLUMNS)
    for job in jobs:
        text = job.prompt.text
        lines.append(" ".join(text.split()) + "\n")
        name = f"{job.id}.{job.attempt}.png" if job.attempt else f"{job.id}.png"
        width, height = job.prompt.width or render.width, job.prompt.height or render.height
        negative, why = render.negative_for(job.prompt.prompt_set), reasons.get(job.id)
        table.writerow((job.id, job.attempt, name, text, negative, job.seed, width, height, why))
    folder = drawn_in(render, run)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run / _CSV, out.getvalue())
    write_atomically(run / _TXT, "".join(lines))
    again = f" ({len(reasons)} of them again; the column `refused` says why)" if reasons else ""
    return ImagesMissing(
        jobs,
        reasons,
        hint=f"Their captions and seeds are in {from_here(run / _CSV)}{again}, the captions alone "
        f"beside it. Put the images into {from_here(folder)}, named as the column `file` says or "
        "in the order of the rows, and run the same command again."
        + (f" {missing[0].note}" if missing[0].note else ""),
    )


def take_back(run: Path) -> None:
    """Delete what was handed out: nothing is to be drawn any more."""
    for name in (_CSV, _TXT):
        delete(run / name)


def _handed_out(run: Path) -> Iterator[tuple[str, int, str]]:
    """The id, attempt and caption of each row that was handed out last."""
    with suppress(OSError, ValueError), (run / _CSV).open("rb") as stream:
        for _, row in csv_rows(stream):
            yield str(row.get("id")), int(row.get("attempt") or 0), str(row.get("caption"))


def _row(id_: str, attempt: int, caption: str) -> str:
    return _digest(f"{id_}.{attempt} {caption}".encode())[:32]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _natural(path: Path) -> list[tuple[int, str]]:
    """Names in the order that people count in: `2.png` before `10.png`."""
    return [(int(n or 0), text.lower()) for n, text in re.findall(r"(\d*)(\D*)", path.name)]
